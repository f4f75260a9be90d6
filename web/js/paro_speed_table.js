// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.
// times: [density, time as a share of dense attention] of whole calls, tail on.
export const MEASURED = {
  "NVIDIA H100 80GB HBM3": [
    {"tokens": 17776, "head_dim": 64, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1001, 0.1485], [0.2, 0.2273], [0.301, 0.3051], [0.499, 0.4606], [1.0, 0.8331]]},
    {"tokens": 32760, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1232], [0.2004, 0.1968], [0.302, 0.2691], [0.5002, 0.4133], [1.0, 0.7468]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.1711], [0.2012, 0.272], [0.2997, 0.3736], [0.5001, 0.5703], [1.0, 1.0241]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 4, "pv_bits": 4, "times": [[0.1986, 0.5325], [0.5016, 1.2077], [1.0, 2.3879]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.1295], [0.2001, 0.2043], [0.2996, 0.2805], [0.5002, 0.4343], [1.0, 0.7806]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 16, "times": [[0.2, 0.3631], [0.5029, 0.8165], [1.0, 1.7022]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 16, "pv_bits": 16, "times": [[0.1995, 0.4999], [0.4981, 1.1769], [1.0, 2.9485]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1369], [0.1992, 0.2173], [0.302, 0.2992], [0.5017, 0.4577], [1.0, 0.813]]},
    {"tokens": 75600, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.0936], [0.2002, 0.1627], [0.2994, 0.2316], [0.4995, 0.3652], [1.0, 0.7152]]},
  ],
};
