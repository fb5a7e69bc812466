"""What is kept on disk: run directories, whole files, provenance, tables as text."""
