// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.
// times: [density, time as a share of dense attention] of whole calls, tail on.
export const MEASURED = {
  "NVIDIA H100 80GB HBM3": [
    {"tokens": 4608, "head_dim": 96, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1012, 0.5363], [0.1991, 0.5813], [0.3004, 0.6306], [0.5022, 0.7255], [1.0, 0.9763]]},
    {"tokens": 4608, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1013, 0.525], [0.1993, 0.5674], [0.2997, 0.6132], [0.5016, 0.7072], [1.0, 0.9497]]},
    {"tokens": 4608, "head_dim": 256, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.8343], [0.203, 0.9309], [0.2981, 1.0226], [0.4975, 1.2195], [1.0, 1.8873]]},
    {"tokens": 17776, "head_dim": 64, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0995, 0.1027], [0.1996, 0.1661], [0.3006, 0.2231], [0.5019, 0.3534], [1.0, 0.6583]]},
    {"tokens": 32760, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0997, 0.0889], [0.2006, 0.1496], [0.2999, 0.2163], [0.5008, 0.347], [1.0, 0.6646]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.1006, 0.1135], [0.2006, 0.1721], [0.3007, 0.2505], [0.5003, 0.3948], [1.0, 0.7658]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 4, "pv_bits": 4, "times": [[0.1996, 0.7826], [0.5011, 1.7796], [1.0, 3.2962]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.0982], [0.1981, 0.1608], [0.2999, 0.23], [0.5005, 0.3631], [1.0, 0.6882]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 16, "times": [[0.0997, 0.1361], [0.2003, 0.226], [0.3002, 0.2992], [0.4991, 0.4332], [1.0, 0.7404]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 16, "pv_bits": 16, "times": [[0.0994, 0.1572], [0.2011, 0.2693], [0.3008, 0.3618], [0.4984, 0.5488], [1.0, 0.8712]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1096], [0.201, 0.1872], [0.3029, 0.257], [0.501, 0.3901], [1.0, 0.7571]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.0993], [0.2001, 0.164], [0.2994, 0.2311], [0.5027, 0.367], [1.0, 0.7012]]},
    {"tokens": 33016, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0995, 0.1214], [0.2, 0.1799], [0.2976, 0.2361], [0.5008, 0.3631], [1.0, 0.6634]]},
    {"tokens": 75600, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0998, 0.0779], [0.2005, 0.1376], [0.3003, 0.1971], [0.4999, 0.3325], [1.0, 0.6284]]},
    {"tokens": 118800, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1, 0.0835], [0.2002, 0.1519], [0.2997, 0.2169], [0.4996, 0.3341], [1.0, 0.624]]},
  ],
};
