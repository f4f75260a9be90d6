// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.
// times: [density, time as a share of dense attention] of whole calls, tail on.
export const MEASURED = {
  "NVIDIA H100 80GB HBM3": [
    {"tokens": 4608, "head_dim": 96, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.101, 0.4876], [0.1994, 0.5213], [0.3039, 0.5598], [0.5033, 0.6372], [1.0, 0.8135]]},
    {"tokens": 4608, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0994, 0.5004], [0.1988, 0.5407], [0.3002, 0.5806], [0.5041, 0.6609], [1.0, 0.8463]]},
    {"tokens": 17776, "head_dim": 64, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1004, 0.1147], [0.1999, 0.1784], [0.2998, 0.2436], [0.5, 0.3741], [1.0, 0.688]]},
    {"tokens": 32760, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1005, 0.0987], [0.1991, 0.1604], [0.3003, 0.2231], [0.4997, 0.3485], [1.0, 0.6414]]},
    {"tokens": 33016, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0998, 0.1285], [0.1999, 0.186], [0.3004, 0.2429], [0.4969, 0.3637], [1.0, 0.6584]]},
    {"tokens": 75600, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1, 0.0772], [0.2, 0.1385], [0.3002, 0.2001], [0.5005, 0.316], [1.0, 0.5958]]},
    {"tokens": 118800, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1001, 0.0895], [0.1997, 0.1639], [0.3004, 0.2331], [0.5007, 0.3582], [1.0, 0.6403]]},
  ],
};
