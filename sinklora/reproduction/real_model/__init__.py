"""Tables 1 and 2 on a pretrained model, for `09_real_model`, and why they come out as they do.

`study` says what is trained and read; `mechanism` looks inside: perplexity by position, attention on sinks.
"""
