"""Supervised fine-tuning: its data (Fig. 8), and what tuned models answer through caches (Fig. 9)."""
