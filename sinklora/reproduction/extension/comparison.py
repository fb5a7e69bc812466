"""Measurements compared: gap to full attention, gain from context, share of the improvement; the table and
the verdict that are made of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sinklora.evaluate.statistics import interval, judge, spread
from sinklora.records.tables import DASH
from sinklora.reproduction.names import LABELS, UNTRAINED

KEYS = ["test_set", "method", "seed"]

RIVALS = ("s2_wrapped", "s2")  # the two readings of S²-Attn

PAPER_SHARE = {"sf": 92, "s2": 39}  # per cent, from the abstract

NEAR = 5  # points: a share this close to the abstract's counts as reproduced

SATURATED = 90  # per cent: where every method reaches this, the share tells nothing

BAD_START = 2  # p0 / pf from which the start, not the method, decides the share


def comparisons(rows: pd.DataFrame, original: int, target: int) -> pd.DataFrame:
    """What each fine-tuned model gains: one row per test set, method and seed (METHOD, "share").

    ``gap_to_full`` = pm - pf at ``target`` tokens, same seed; ``gain_from_context`` = perplexity at
    ``original`` minus at ``target``, same model and tokens; ``share`` = (p0 - pm) / (p0 - pf), p0 without
    fine-tuning (the abstract's 39 % and 92 %), NaN where full attention does not improve on p0.
    Raises ValueError if a context was not measured, or something twice.
    """
    _check_contexts(rows, original, target)
    tuned = rows[(rows.method != UNTRAINED) & rows.seed.notna()]
    if tuned.duplicated([*KEYS, "context"]).any():
        raise ValueError("rows: a method was measured twice with one seed, test set and context")
    measured = tuned.set_index([*KEYS, "context"]).perplexity.unstack("context").reset_index()
    full = measured[measured.method == "full"].set_index(["test_set", "seed"])[target].rename("pf")
    start = rows[(rows.method == UNTRAINED) & (rows.context == target)]
    frame = measured.join(full, on=["test_set", "seed"]).join(
        start.set_index("test_set").perplexity.rename("p0"), on="test_set"
    )
    improvement = (frame.p0 - frame.pf).where(frame.p0 > frame.pf)
    return pd.DataFrame(
        {
            **{name: frame[name] for name in ("test_set", "method")},
            "seed": frame.seed.astype(int),
            "gap_to_full": frame[target] - frame.pf,
            "gain_from_context": frame[original] - frame[target],
            "share": (frame.p0 - frame[target]) / improvement,
        }
    )


def _check_contexts(rows: pd.DataFrame, original: int, target: int) -> None:
    known = sorted(int(context) for context in rows.context.unique())
    for name, value in (("original", original), ("target", target)):
        if value not in known:
            raise ValueError(f"{name}={value}: not among the measured contexts {known}")


def _of(rows: pd.DataFrame, test_set: str) -> pd.DataFrame:
    chosen = rows[rows.test_set == test_set]
    if chosen.empty:
        raise ValueError(f"test_set={test_set!r}: measured are {sorted(rows.test_set.unique())}")
    return chosen


def table(
    rows: pd.DataFrame, test_set: str, methods: Sequence[str], original: int, target: int
) -> pd.DataFrame:
    """Perplexity by context and the three comparisons, as text for people.

    Mean ± standard deviation over seeds; the gap's 95 % t-interval has a column where a method has two seeds
    or more. Not measured is a dash; full attention has no gap to itself and all of its own improvement.
    Raises ValueError for a test set or context that was not measured.
    """
    chosen = _of(rows, test_set)
    compared = comparisons(chosen, original, target)
    lines = [_line(chosen, compared, method) for method in (UNTRAINED, *methods)]
    frame = pd.DataFrame(lines).dropna(axis="columns", how="all")
    return frame.fillna(DASH)


def _line(rows: pd.DataFrame, compared: pd.DataFrame, method: str) -> dict[str, Any]:
    mine, own = rows[rows.method == method], compared[compared.method == method]
    line: dict[str, Any] = {"trained with": method}
    line |= {
        str(context): spread(mine[mine.context == context].perplexity)
        for context in sorted(rows.context.unique())
    }
    gap, share = (DASH, DASH) if method == "full" else (spread(own.gap_to_full), spread(100 * own.share, 1))
    low, high = interval(own.gap_to_full)
    paired = method != "full" and not math.isnan(low)
    return line | {
        "gap to full": gap,
        "95 % interval of the gap": f"{low:z.2f} to {high:z.2f}" if paired else None,
        "gain from context": spread(own.gain_from_context),
        "share of improvement (%)": share,
        "seeds": str(len(own)) if len(own) else DASH,
    }


def with_paper(
    frame: pd.DataFrame, published: pd.DataFrame, target: int, trained_at: int = 8192
) -> pd.DataFrame:
    """A `table` with the published rows under it, each value in the column of the same share of its target.

    So 4096 of the paper's 8192 tokens stands under 1024 of a ``target`` of 2048; a length without a column is
    left out. `published` comes from `paper_values`. Perplexities of other models on other text: their fall
    from left to right compares, their level does not.
    """
    lines = []
    for row, values in published.groupby("row", sort=False):
        line = dict.fromkeys(map(str, frame.columns), DASH)
        line["trained with"] = f"paper: {row}, at {', '.join(values.column)} of {trained_at} tokens"
        for length, value in zip(values.column, values.value, strict=True):
            place, rest = divmod(int(length) * target, trained_at)
            if not rest and str(place) in line:
                line[str(place)] = str(value)
        lines.append(line)
    return pd.concat([frame, pd.DataFrame(lines, columns=frame.columns)], ignore_index=True)


def verdict(rows: pd.DataFrame, test_set: str, original: int, target: int) -> str:
    """What became of the paper's claims, from the numbers alone.

    Is SF-Attn better than S²-Attn (each reading of it); does the longer context help; are the shares near the
    abstract's 92 % and 39 %; which reading of SF-Attn is better. A difference counts where its paired 95 %
    t-interval leaves out 0: one seed decides nothing. Raises ValueError as `comparisons` does.
    """
    chosen = _of(rows, test_set)
    compared = comparisons(chosen, original, target)
    if "sf" not in set(compared.method):
        return "Not tested: SF-Attn was not trained."
    ends = chosen[chosen.context == target].groupby("method").perplexity.mean()
    gaps = compared.pivot(index="seed", columns="method", values="gap_to_full")
    sentences = [_claim(gaps[name] - gaps.sf, LABELS[name]) for name in RIVALS if name in gaps]
    sentences.append(_gains(compared, original, target))
    sentences.append(_shares(compared, float(ends.get(UNTRAINED, math.nan)), float(ends["full"])))
    if "sf_shifted" in gaps:
        sentences.append(_readings(gaps.sf_shifted - gaps.sf))
    return " ".join(sentences)


def _claim(lead: "pd.Series[float]", rival: str) -> str:
    outcome, words = judge(lead, "lower", "higher")
    return f"{outcome}: SF-Attn is better than {rival}; perplexity {words}."


def _readings(lead: "pd.Series[float]") -> str:
    outcome, words = judge(lead, "lower", "higher")
    better = {"Held": "without the half shift", "Did not hold": "with the half shift kept"}
    found = better.get(outcome, outcome.lower())
    return f"Better reading of SF-Attn: {found}; without the half shift perplexity is {words}."


def _gains(compared: pd.DataFrame, original: int, target: int) -> str:
    gains = compared.pivot(index="seed", columns="method", values="gain_from_context")
    outcome, words = judge(gains.sf, "falls", "rises")
    full = judge(gains.full, "falls", "rises")[1].partition(",")[0]
    return (
        f"{outcome}: a longer context helps; from {original} to {target} tokens perplexity {words}, "
        f"with SF-Attn ({full} with full attention)."
    )


def _shares(compared: pd.DataFrame, start: float, full: float) -> str:
    tuned = compared[compared.method != "full"]
    shares = 100 * tuned.groupby("method").share.mean().dropna()
    if math.isnan(start):
        return "Share of the improvement: not tested, the model without fine-tuning was not measured."
    if "sf" not in shares:
        return (
            "Share of the improvement: there is none to share; fine-tuning with full attention did not "
            f"improve on the model without it (perplexity {start:.1f} without, {full:.1f} with)."
        )
    rivals = [name for name in RIVALS if name in shares]
    found = ", ".join(f"{LABELS[name]} {shares[name]:z.1f} %" for name in ("sf", *rivals))
    sf = bool(abs(shares["sf"] - PAPER_SHARE["sf"]) <= NEAR)
    s2 = any(abs(shares[name] - PAPER_SHARE["s2"]) <= NEAR for name in rivals)
    outcome = ("Did not hold", "Held in part", "Held")[int(sf) + int(s2)] if rivals else "Not tested"
    seeds = tuned.seed.nunique()
    return (
        f"{outcome}: the share of the improvement is near {PAPER_SHARE['sf']} % with SF-Attn and "
        f"{PAPER_SHARE['s2']} % with S²-Attn; here {found} (n = {seeds}).{_caution(shares, start, full)}"
    )


def _caution(shares: "pd.Series[float]", start: float, full: float) -> str:
    if start < BAD_START * full:
        return ""
    text = (
        f" That share says little: interpolated but not fine-tuned the model is as bad as {start:.1f} "
        f"(full attention fine-tuned: {full:.1f})"
    )
    if shares.min() < SATURATED:
        return f"{text}; the gap to full attention says more."
    return f"{text}, so that every method reaches {math.floor(shares.min())} % or more."
