"""How far pass keys come back (Fig. 5), in words."""

from collections.abc import Mapping, Sequence

import pandas as pd

from sinklora.reproduction.names import BASE, UNTRAINED
from sinklora.reproduction.retrieval.tables import accuracies, only_interpolated

HALF = 0.5  # of the keys: below this share a length counts as out of reach


def holds_to(rows: pd.DataFrame, model: str) -> int:
    """The longest length (tokens) up to which a model gives at least HALF of the keys back; 0: none."""
    reached = 0
    for tokens, share in _shares(rows, model).items():
        if share < HALF:
            break
        reached = int(str(tokens))
    return reached


def longest(rows: pd.DataFrame, model: str) -> int:
    """The longest length (tokens) at which it does so, whatever happens at shorter ones; 0: none."""
    shares = _shares(rows, model)
    return int(max(shares.index[shares >= HALF], default=0))


def _shares(rows: pd.DataFrame, model: str) -> "pd.Series[float]":
    shares = accuracies(rows[rows.model == model])
    return shares.set_index("tokens").accuracy.sort_index()


def reach_in_words(rows: pd.DataFrame, context: int, patterns: Sequence[str], further: int = 0) -> str:
    """How far retrieval holds, by model.

    `further`: tokens to which the extensions' positions were interpolated without training as well; 0: none.
    """
    untrained = [UNTRAINED] if UNTRAINED in set(rows.model) else []
    reach = _reach(rows, (BASE, *untrained, *patterns))
    beyond = [model for model in patterns if reach[model][0] > context]
    past = f"beyond the trained {context}: {', '.join(beyond)}" if beyond else f"none beyond {context}"
    return (
        "At least half of the keys come back up to (in brackets: the longest length at which they do, where "
        f"shorter ones fail), in tokens: {_said(reach)}; {past}.{_interpolated(rows, patterns, further)}"
    )


def _reach(rows: pd.DataFrame, models: Sequence[str]) -> dict[str, tuple[int, int]]:
    return {model: (holds_to(rows, model), longest(rows, model)) for model in models}


def _said(reach: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(
        f"{m} {upto}" + (f" ({most})" if most > upto else "") for m, (upto, most) in reach.items()
    )


def _interpolated(rows: pd.DataFrame, patterns: Sequence[str], further: int) -> str:
    if not further:
        return ""
    reach = _reach(only_interpolated(rows, patterns, further), patterns)
    return f" Interpolated to {further} without training: {_said(reach)}."
