"""Which tokens of a prompt a cache has kept, layer by layer and head by head."""

import numpy as np
from numpy.typing import NDArray

from sinklora.hf.budget_cache import BudgetCache


def kept_mask(cache: BudgetCache, tokens: int) -> NDArray[np.bool_]:
    """Whether each key/value head keeps each of a prompt's first `tokens`, of the cache's first row:
    bool [layers, Hkv, tokens].
    """
    layers = range(len(cache.budget_layers))
    positions = [cache.kept_positions(layer)[0].cpu().numpy() for layer in layers]
    mask = np.zeros((len(positions), len(positions[0]), tokens), dtype=bool)
    for layer, kept in enumerate(positions):
        for head, own in enumerate(kept):
            mask[layer, head, own[(own >= 0) & (own < tokens)]] = True
    return mask
