"""LoRA with trainable embeddings and norms, and adapters on disk."""
