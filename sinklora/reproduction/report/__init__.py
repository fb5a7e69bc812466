"""Results as files, and the index of them."""
