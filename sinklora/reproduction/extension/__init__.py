"""Tables 1 and 2, Fig. 1 (perplexity).

`study` trains and reads, `comparison` decides, `tables` and `figures` show; which patterns and seeds,
`02_perplexity` says.
"""
