"""The bridge to transformers: the registered attention, patterns on models, longer contexts, the cache.

Importing it adds sinklora's names to transformers' registries of attention, and changes nothing else.
"""

import sinklora.hf.attention  # noqa: F401  (registers)
