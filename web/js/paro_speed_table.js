// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.
// times: [density, time as a share of dense attention] of whole calls, tail on.
export const MEASURED = {
  "NVIDIA H100 80GB HBM3": [
    {"tokens": 4608, "head_dim": 96, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1004, 1.416], [0.2011, 1.4168], [0.2972, 1.3654], [0.499, 1.2683], [1.0, 1.3916]]},
    {"tokens": 4608, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1006, 1.9368], [0.1982, 1.9357], [0.2994, 1.8784], [0.498, 1.7758], [1.0, 1.8251]]},
    {"tokens": 4608, "head_dim": 256, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1006, 1.7115], [0.1999, 1.6586], [0.3002, 1.5164], [0.5086, 1.2369], [1.0, 2.2853]]},
    {"tokens": 17776, "head_dim": 64, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1001, 0.1406], [0.2, 0.2187], [0.301, 0.2975], [0.499, 0.4531], [1.0, 0.8246]]},
    {"tokens": 32760, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1152], [0.2004, 0.1884], [0.302, 0.2627], [0.5002, 0.4058], [1.0, 0.7389]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.1646], [0.2012, 0.2677], [0.2997, 0.3697], [0.5001, 0.5749], [1.0, 1.0096]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 4, "pv_bits": 4, "times": [[0.1986, 0.4827], [0.5016, 1.0984], [1.0, 2.1378]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.1235], [0.2001, 0.2], [0.2996, 0.2732], [0.5002, 0.4265], [1.0, 0.7734]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 16, "times": [[0.2, 0.3549], [0.5029, 0.8133], [1.0, 1.7005]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 16, "pv_bits": 16, "times": [[0.1995, 0.4979], [0.4981, 1.1774], [1.0, 2.9375]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1285], [0.1992, 0.2084], [0.302, 0.2909], [0.5017, 0.4445], [1.0, 0.7879]]},
    {"tokens": 33016, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1001, 0.1348], [0.2003, 0.2046], [0.2992, 0.2735], [0.5002, 0.4225], [1.0, 0.7639]]},
    {"tokens": 75600, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.0934], [0.2002, 0.1643], [0.2994, 0.2328], [0.4995, 0.3709], [1.0, 0.7052]]},
  ],
};
