"""Attention patterns: `patterns` names them, `kinds` says what is seen, `dispatch` computes it."""
