"""Chat about a long document through a bounded cache: one engine for terminal, notebook and page."""
