"""The SinkLoRA paper's tables and figures; nothing outside of this package imports it."""
