"""What a bounded key/value cache keeps (pure PyTorch)."""
