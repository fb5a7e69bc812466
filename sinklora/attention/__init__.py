"""Patterns of attention (pure PyTorch): `patterns` names them, `kinds` says what is seen, `dispatch` computes."""
