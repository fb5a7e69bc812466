"""Fig. 6 and Table 5."""
