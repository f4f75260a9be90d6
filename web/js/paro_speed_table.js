// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.
// times: [density, time as a share of dense attention] of whole calls, tail on.
export const MEASURED = {
  "NVIDIA H100 80GB HBM3": [
    {"tokens": 4608, "head_dim": 96, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1003, 0.5389], [0.2007, 0.5835], [0.3004, 0.6297], [0.498, 0.7227], [1.0, 0.9408]]},
    {"tokens": 4608, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.101, 0.7038], [0.1971, 0.7175], [0.3, 0.6672], [0.5026, 0.7371], [1.0, 1.397]]},
    {"tokens": 4608, "head_dim": 256, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0997, 0.8709], [0.1983, 0.9671], [0.2979, 1.0685], [0.5053, 1.27], [1.0, 1.937]]},
    {"tokens": 17776, "head_dim": 64, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1, 0.1129], [0.2004, 0.1788], [0.3013, 0.2454], [0.501, 0.381], [1.0, 0.6972]]},
    {"tokens": 32760, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0998, 0.0998], [0.1994, 0.1661], [0.298, 0.231], [0.5001, 0.3641], [1.0, 0.6706]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.1006, 0.1363], [0.2006, 0.2216], [0.3007, 0.3072], [0.5003, 0.4714], [1.0, 0.8409]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 4, "pv_bits": 4, "times": [[0.2011, 0.8962], [0.5014, 2.0375], [1.0, 4.088]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1135], [0.1981, 0.1782], [0.2999, 0.2501], [0.5005, 0.392], [1.0, 0.7123]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 16, "times": [[0.2001, 0.27], [0.4991, 0.6047], [1.0, 1.1284]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 16, "pv_bits": 16, "times": [[0.1996, 0.3165], [0.4987, 0.7341], [1.0, 1.3862]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1355], [0.201, 0.2223], [0.3029, 0.3093], [0.501, 0.4788], [1.0, 0.8485]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.1178], [0.2001, 0.196], [0.2994, 0.2702], [0.5027, 0.4224], [1.0, 0.769]]},
    {"tokens": 33016, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1, 0.1243], [0.2, 0.1806], [0.2988, 0.2376], [0.4965, 0.3627], [1.0, 0.6583]]},
    {"tokens": 75600, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1001, 0.0817], [0.2009, 0.149], [0.3001, 0.2285], [0.5008, 0.3379], [1.0, 0.6244]]},
    {"tokens": 118800, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1, 0.0869], [0.1999, 0.1573], [0.3, 0.2236], [0.5, 0.3437], [1.0, 0.6284]]},
  ],
};
