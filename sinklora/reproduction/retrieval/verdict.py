"""What the pass keys say of the claim of Fig. 5, and what so few of them leave open."""

from collections.abc import Mapping, Sequence

import pandas as pd

from sinklora.evaluate.statistics import sign_test
from sinklora.reproduction.names import BASE
from sinklora.reproduction.retrieval.tables import accuracies, only_interpolated

HALF = 0.5  # of the keys: below this share a length counts as out of reach

LEVEL = 0.05  # chance of seeing a difference at any length where there is none


def holds_to(rows: pd.DataFrame, model: str, least: float = HALF) -> int:
    """The longest length (tokens) up to which a model gives at least this share of the keys back; 0: none."""
    reached = 0
    for tokens, share in _shares(rows, model).items():
        if share < least:
            break
        reached = int(str(tokens))
    return reached


def longest(rows: pd.DataFrame, model: str, least: float = HALF) -> int:
    """The longest length (tokens) at which it does so, whatever happens at shorter ones; 0: none."""
    shares = _shares(rows, model)
    return int(max(shares.index[shares >= least], default=0))


def _shares(rows: pd.DataFrame, model: str) -> "pd.Series[float]":
    shares = accuracies(rows[rows.model == model])
    return shares.set_index("tokens").accuracy.sort_index()


def surely_better(rows: pd.DataFrame, model: str, rival: str) -> list[int]:
    """Lengths (tokens) at which `model` gives more keys back than `rival`: a sign test over the keys that
    just one of the two gave back, at LEVEL over all lengths together (Holm).

    Both were asked for the same keys; several training seeds count as keys of their own, which the same
    documents make a little too many.
    """
    answered, rivals = (rows[rows.model == name] for name in (model, rival))
    seeded = answered.seed.notna().all() and rivals.seed.notna().all()
    on = ["tokens", "depth", *(["seed"] if seeded else [])]
    pairs = answered.merge(rivals, on=on, suffixes=("", "_rival"))
    tests = []
    for tokens, group in pairs.groupby("tokens"):
        ours, other = group.correct.astype(bool), group.correct_rival.astype(bool)
        wins, losses = int((ours & ~other).sum()), int((~ours & other).sum())
        tests.append((sign_test(wins, losses), int(str(tokens)), wins > losses))
    better = []
    for rank, (p, tokens, ahead) in enumerate(sorted(tests)):
        if p > LEVEL / (len(tests) - rank):
            break
        if ahead:
            better.append(tokens)
    return sorted(better)


def verdict(rows: pd.DataFrame, context: int, patterns: Sequence[str], further: int = 0) -> str:
    """How far retrieval holds, by model, from the numbers alone; what they cannot decide is left open.

    `further`: tokens to which the extensions' positions were interpolated without training as well; 0: none.
    """
    models = (BASE, *patterns)
    reach = _reach(rows, models)
    beyond = [model for model in patterns if reach[model][0] > context]
    past = f"beyond the trained {context}: {', '.join(beyond)}" if beyond else f"none beyond {context}"
    held, where = _judged(rows, context) if {"sf", "full"} <= set(models) else ("Not tested", "")
    return (
        f"{held}: a model extended with SF-Attn retrieves as far as one trained with full attention.{where} "
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


def _judged(rows: pd.DataFrame, context: int) -> tuple[str, str]:
    """Whether the claim held, and a sentence about the lengths (tokens) that decided, or did not.

    A length speaks for it where SF-Attn's 95 % interval lies above half of the keys, or SF-Attn surely gives
    more back than full attention; against it where full attention surely gives more back; not at all where,
    beyond the trained context, full attention's interval lies below half. Any other is open.
    """
    shares = accuracies(rows).set_index(["model", "tokens"])
    sf, full = shares.loc["sf"], shares.loc["full"]
    better, worse = surely_better(rows, "sf", "full"), surely_better(rows, "full", "sf")
    kept = [t for t in sf.index if sf.low[t] >= HALF or t in better]
    lost = [t for t in worse if t not in kept]
    silent = [t for t in full.index if t > context and full.high[t] < HALF]
    undecided = sorted(set(sf.index) - {*kept, *lost, *silent})
    if lost:
        part = surely_better(rows, "sf", BASE)
        return "Held in part" if part else "Did not hold", f" It is behind at {_listed(lost)} tokens."
    if undecided or not kept:
        seeds = int(sf.seeds.max())
        keys = int(sf.trials.max()) // seeds
        where = f" Open at {_listed(undecided)} tokens." if undecided else " Neither gets there."
        return f"Not decided ({keys} keys, {seeds} seed{'s' if seeds > 1 else ''})", where
    return "Held", ""


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths))
