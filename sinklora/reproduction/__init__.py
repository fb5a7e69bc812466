"""The SinkLoRA paper's tables and figures; nothing below imports it.

| folder | items | notebook |
|---|---|---|
| `base_model` | the embedded base model | 00 |
| `patterns` | Figs. 2, 3, 4 and 7 | 01 |
| `extension` | Tables 1 and 2, Fig. 1 (perplexity) | 02 |
| `real_model` | the same on a pretrained model | 09 |
| `efficiency` | Table 3, Fig. 1 (time and memory) | 03, 07 |
| `retrieval` | Fig. 5, Table 4 | 04 |
| `longbench` | Table 6 | 05 |
| `cache` | Fig. 6, Table 5 | 06 |
| `ablations` | Tables 7, 8 and 9, sweeps, schedules | 08 |
| `cache`, its study of Replay | ours, beyond the paper | 10 |
| `fine_tuning` | Figs. 8 and 9 | 11 |
| `explorer`, `demo` | a text of one's own | explore, and `sinklora demo` |
| `report` | results as files, and their index | all |
| `workflow` | the same as jobs | all |
"""
