"""Fig. 1 (time and memory) and Table 3."""
