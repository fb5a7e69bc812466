"""Training: specs, corpora, the loop, pattern schedules."""
