"""LongBench: records, tasks, predictions, scores."""
