"""What runs in the peers' own environments: nothing here imports more than a case needs (see ../peers.py)."""
