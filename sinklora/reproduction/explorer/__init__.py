"""A reader's own text: where a model's attention goes on it, and what patterns and caches keep of it."""
