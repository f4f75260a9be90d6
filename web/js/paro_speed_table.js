// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.
// times: [density, time as a share of dense attention] of whole calls, tail on.
export const MEASURED = {
  "NVIDIA H100 80GB HBM3": [
    {"tokens": 4608, "head_dim": 96, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1012, 0.5364], [0.1991, 0.5822], [0.3004, 0.6314], [0.5022, 0.7261], [1.0, 0.9783]]},
    {"tokens": 4608, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1013, 0.5253], [0.1993, 0.5712], [0.2997, 0.6196], [0.5016, 0.7126], [1.0, 0.9528]]},
    {"tokens": 4608, "head_dim": 256, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.8366], [0.203, 0.9349], [0.2981, 1.0267], [0.4975, 1.2244], [1.0, 1.8909]]},
    {"tokens": 17776, "head_dim": 64, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0995, 0.1], [0.1996, 0.1585], [0.3006, 0.2178], [0.5019, 0.3371], [1.0, 0.6544]]},
    {"tokens": 32760, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0997, 0.0934], [0.2006, 0.1569], [0.2999, 0.2206], [0.5008, 0.3464], [1.0, 0.6454]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.1006, 0.1221], [0.2006, 0.1983], [0.3007, 0.2765], [0.5003, 0.4342], [1.0, 0.8197]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 4, "pv_bits": 4, "times": [[0.1996, 0.816], [0.5011, 1.8799], [1.0, 3.9277]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.0965], [0.1981, 0.1593], [0.2999, 0.2258], [0.5005, 0.3533], [1.0, 0.6483]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 16, "times": [[0.0997, 0.1424], [0.2003, 0.2316], [0.3002, 0.3165], [0.4991, 0.4705], [1.0, 0.7596]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 16, "pv_bits": 16, "times": [[0.0994, 0.1724], [0.2011, 0.2999], [0.3008, 0.4076], [0.4984, 0.5835], [1.0, 0.8606]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1185], [0.201, 0.1957], [0.3029, 0.2723], [0.501, 0.4258], [1.0, 0.8012]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.1068], [0.2001, 0.1811], [0.2994, 0.2456], [0.5027, 0.3919], [1.0, 0.6871]]},
    {"tokens": 33016, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0995, 0.1215], [0.2, 0.18], [0.2976, 0.2359], [0.5008, 0.3623], [1.0, 0.6619]]},
    {"tokens": 75600, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0998, 0.0776], [0.2005, 0.1412], [0.3003, 0.205], [0.4999, 0.3217], [1.0, 0.6243]]},
    {"tokens": 118800, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1, 0.0812], [0.2002, 0.1496], [0.2997, 0.2164], [0.4996, 0.3316], [1.0, 0.6149]]},
  ],
};
