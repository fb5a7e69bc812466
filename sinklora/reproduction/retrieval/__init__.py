"""Fig. 5 and Table 4."""
