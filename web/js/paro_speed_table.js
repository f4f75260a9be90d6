// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.
// times: [density, time as a share of dense attention] of whole calls, tail on.
export const MEASURED = {
  "NVIDIA H100 80GB HBM3": [
    {"tokens": 17776, "head_dim": 64, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1004, 0.136], [0.1999, 0.2143], [0.2998, 0.2934], [0.5, 0.4542], [1.0, 0.833]]},
    {"tokens": 32760, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1005, 0.1175], [0.1991, 0.1982], [0.3003, 0.2791], [0.4997, 0.4404], [1.0, 0.8087]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.1006, 0.1382], [0.2006, 0.2272], [0.3007, 0.3164], [0.5003, 0.4886], [1.0, 0.895]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 4, "pv_bits": 4, "times": [[0.2011, 0.8792], [0.5014, 2.0023], [1.0, 4.0744]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1221], [0.1981, 0.1957], [0.2999, 0.2748], [0.5005, 0.4358], [1.0, 0.8245]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 16, "times": [[0.2001, 0.2648], [0.4991, 0.5919], [1.0, 1.1002]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 16, "pv_bits": 16, "times": [[0.1996, 0.3139], [0.4987, 0.744], [1.0, 1.3775]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 64, "qk_bits": 8, "pv_bits": 8, "times": [[0.0999, 0.1416], [0.201, 0.2345], [0.3029, 0.3281], [0.501, 0.5168], [1.0, 0.9223]]},
    {"tokens": 32768, "head_dim": 128, "query_block": 128, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1002, 0.126], [0.2001, 0.2106], [0.2994, 0.2946], [0.5027, 0.4654], [1.0, 0.8581]]},
    {"tokens": 75600, "head_dim": 128, "query_block": 64, "key_block": 128, "qk_bits": 8, "pv_bits": 8, "times": [[0.1, 0.0869], [0.2, 0.1581], [0.3002, 0.2275], [0.5005, 0.3673], [1.0, 0.6841]]},
  ],
};
