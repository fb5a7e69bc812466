"""Evaluations: one task, one file. Each takes a model and documents and returns a frozen result."""
