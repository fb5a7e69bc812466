"""Supervised fine-tuning: its data (Fig. 8)."""
