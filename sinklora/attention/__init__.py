"""Attention patterns: what may be seen, and computing it fast (pure PyTorch)."""
