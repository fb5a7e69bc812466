"""The notebooks and their fine-tunes as jobs that depend on one another, on this machine or a cluster."""
