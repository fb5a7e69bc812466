"""Attention patterns (pure PyTorch): `patterns` names them, `kinds` says what a query sees, `dispatch` computes."""
