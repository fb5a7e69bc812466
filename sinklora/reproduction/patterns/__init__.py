"""Figs. 2, 3, 4 and 7."""
