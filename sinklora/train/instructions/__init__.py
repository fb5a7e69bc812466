"""Instruction data: examples of a question and its answer, made from published sets or from documentation."""
