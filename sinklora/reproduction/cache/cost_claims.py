"""What the measurements say of Table 5 (time): ratios of the same round, intervals over rounds."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from sinklora.evaluate.generation_cost import OWN
from sinklora.evaluate.paired_effects import effect
from sinklora.reproduction.cache.generation_study import DECODING, SETTING, whole_seconds
from sinklora.reproduction.names import RANDOM
from sinklora.reproduction.report.claims import Claim, Tested, family

MORE, LESS = "% more tokens a second", "% of the time saved with {} tokens a row"

COMPARED = {"full": "with a full cache of the same code", OWN: f"with {OWN}"}


def time_claims(rounds: pd.DataFrame, answers: Sequence[int], batch: int) -> list[Claim]:
    """Whether H2O at 20 % saves time against the full cache of the same code: in decoding, and with the
    prompt before each number of tokens in `answers` for each of `batch` rows: the more are written, the more
    of them pay for the prompt. `rounds` are those of `generation_rounds`.
    """
    blank = Claim("Table 5", "", "not decided", table="table5", model=RANDOM, restated=True)
    rounds_with_batch = rounds.assign(batch=batch)
    h2o, full = (_by_round(rounds_with_batch, name) for name in ("h2o 20%", "full (ours)"))
    decoding = replace(
        blank, sentence="decoding with H2O at 20 % is faster than with the full cache", unit=MORE
    )
    effects = _faster(decoding, h2o, full)
    for tokens in answers:
        words = f"a prompt and {tokens} tokens after it take less time with H2O at 20 % than with the full cache"
        effects |= _less_time(replace(blank, sentence=words, restated=False), h2o, full, tokens)
    return family(effects)


def generation_claims(rows: pd.DataFrame, answers: Sequence[int], budget: float, model: str) -> list[Claim]:
    """Whether H2O saves time, in each setting of `measure_generation`: with the prompt and each number of
    tokens a row in `answers`, as the paper times both together, and in decoding alone. Against a full cache of the same code, which
    tells what the budget brings, and, in our words, against transformers' own, which is decoded by other
    operators. One correction for all.
    """
    blank = Claim("Table 5", "", "not decided", table="table5_real", model=model)
    effects: dict[Claim, Tested] = {}
    for (batch, prompt), group in rows.groupby(SETTING, sort=False):
        h2o, setting, at = _by_round(group, "h2o"), f"{batch} × {prompt} tokens", f"with H2O at {budget:.0%}"
        for cache, beside in COMPARED.items():
            other = _by_round(group, cache)
            for tokens in answers:
                words = f"{setting} and {tokens} more a row take less time {at} than {beside}"
                total = replace(blank, sentence=words, restated=cache == OWN)
                effects |= _less_time(total, h2o, other, tokens)
            words = f"behind {setting} decoding is faster {at} than {beside}"
            effects |= _faster(replace(blank, sentence=words, unit=MORE, restated=True), h2o, other)
    return family(effects)


def _by_round(rows: pd.DataFrame, cache: str) -> pd.DataFrame:
    return rows[rows.cache == cache].sort_values("round")


def _faster(claim: Claim, cache: pd.DataFrame, other: pd.DataFrame) -> dict[Claim, Tested]:
    """How many per cent more tokens a second a cache decodes than another."""
    logs = np.log(cache[DECODING].to_numpy() / other[DECODING].to_numpy())
    return _over_rounds(claim, logs, lambda log: 100 * float(np.expm1(log)))


def _less_time(
    claim: Claim, cache: pd.DataFrame, other: pd.DataFrame, new_tokens: int
) -> dict[Claim, Tested]:
    """How many per cent less time prompt and new tokens take with a cache than with another."""
    seconds = [whole_seconds(rows, new_tokens).to_numpy() for rows in (cache, other)]
    logs = np.log(seconds[1] / seconds[0])
    saved = replace(claim, unit=LESS.format(new_tokens))
    return _over_rounds(saved, logs, lambda log: -100 * float(np.expm1(-log)))


def _over_rounds(
    claim: Claim, logs: "np.ndarray[tuple[int], np.dtype[np.floating]]", shown: Callable[[float], float]
) -> dict[Claim, Tested]:
    """A claim with the mean logarithm of the rounds' ratios, its numbers as they are shown."""
    mean_logarithm = effect(lambda mean: mean, logs[None])
    n = "1 round" if len(logs) == 1 else f"{len(logs)} rounds"
    mapped = replace(
        mean_logarithm,
        estimate=shown(mean_logarithm.estimate),
        low=shown(mean_logarithm.low),
        high=shown(mean_logarithm.high),
        low90=shown(mean_logarithm.low90),
        high90=shown(mean_logarithm.high90),
        error=np.nan,
    )
    return {replace(claim, n=n): mapped}
