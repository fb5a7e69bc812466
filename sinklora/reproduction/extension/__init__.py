"""Tables 1 and 2, Fig. 1 (perplexity)."""
