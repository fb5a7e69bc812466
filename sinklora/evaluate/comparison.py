"""Measurements compared: gap to full attention, gain from context, share of the improvement; the table and
the verdict that are made of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

UNTRAINED = "not fine-tuned"
KEYS = ["test_set", "method", "seed"]
LABELS = {
    "full": "full attention",
    "sf": "SF-Attn",
    "sf_shifted": "SF-Attn with the half shift kept",
    "s2": "S²-Attn without the leak",
    "s2_wrapped": "S²-Attn as in LongLoRA's Algorithm 1, which leaks",
}
RIVALS = ("s2_wrapped", "s2")  # the two readings of S²-Attn
PAPER_SHARE = {"sf": 92, "s2": 39}  # per cent, from the abstract
NEAR = 5  # points: a share this close to the abstract's counts as reproduced
SATURATED = 90  # per cent: where every method reaches this, the share tells nothing
BAD_START = 2  # p0 / pf from which the start, not the method, decides the share
DASH = "–"


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


def spread(values: "pd.Series[float]", digits: int = 2) -> str:
    """Mean ± standard deviation over seeds; the value alone where there is one, a dash where there is none."""
    if values.dropna().empty:
        return DASH
    mean = f"{values.mean():z.{digits}f}"
    return mean if values.count() < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t with P(-t < T < t) = ``level`` for Student's T of ``freedom`` degrees (12.706 for 1, 4.303 for 2).

    T = sqrt(freedom) tan(angle) gives the angle a density proportional to cos(angle)^(freedom - 1).
    """
    if freedom < 1:
        raise ValueError(f"freedom={freedom}: expected at least 1")
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], angle)))


def interval(differences: "pd.Series[float]", level: float = 0.95) -> tuple[float, float]:
    """Student's t-interval of the mean of paired differences; NaN for fewer than two.

    It speaks of other seeds on the same test documents, not of other documents.
    """
    values = differences.dropna()
    if len(values) < 2:
        return math.nan, math.nan
    half = t_quantile(len(values) - 1, level) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def table(
    rows: pd.DataFrame, test_set: str, methods: Sequence[str], original: int, target: int
) -> pd.DataFrame:
    """Perplexity by context and the three comparisons, as text for people: mean ± standard deviation over seeds.

    The gap's 95 % t-interval has a column where a method has two seeds or more. Not measured is a dash.
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
    left out. ``published`` comes from `sinklora.report.paper_values`. Perplexities of other models on other
    text: their fall from left to right compares, their level does not.
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
    """What became of the paper's claims, from the numbers alone: is SF-Attn better than S²-Attn (each reading of
    it), are the shares near the abstract's 92 % and 39 %, does the longer context help; and which reading of
    SF-Attn is better.

    A lead counts as held, or as not, where its paired 95 % t-interval leaves out 0; one seed decides nothing.
    """
    chosen = _of(rows, test_set)
    compared = comparisons(chosen, original, target)
    if "sf" not in set(compared.method):
        return "Not tested: SF-Attn was not trained."
    start = float(chosen[(chosen.method == UNTRAINED) & (chosen.context == target)].perplexity.mean())
    full = float(chosen[(chosen.method == "full") & (chosen.context == target)].perplexity.mean())
    gaps = compared.pivot(index="seed", columns="method", values="gap_to_full")
    sentences = [_claim(gaps, rival) for rival in RIVALS if rival in gaps]
    sentences.append(_shares(compared, start, full))
    sentences.append(_gains(compared, original, target))
    if "sf_shifted" in gaps:
        sentences.append(f"Of the two readings of SF-Attn: {_lead(gaps, 'sf_shifted')}.")
    return " ".join(sentences)


def _claim(gaps: pd.DataFrame, rival: str) -> str:
    low, high = interval(gaps[rival] - gaps.sf)
    outcome = "Held" if low > 0 else "Did not hold" if high < 0 else "Not decided"
    return f"{outcome}: {_lead(gaps, rival)}."


def _lead(gaps: pd.DataFrame, rival: str) -> str:
    """How much lower SF-Attn's perplexity is than a rival's, paired by seed."""
    lead = (gaps[rival] - gaps.sf).dropna()
    count = len(lead)
    if not count:
        return f"SF-Attn and {LABELS[rival]} share no seed"
    ahead = "ahead" if lead.mean() > 0 else "behind" if lead.mean() < 0 else "level"
    text = f"SF-Attn is {ahead} of {LABELS[rival]}" if ahead == "ahead" else f"SF-Attn is {ahead} "
    if ahead != "ahead":
        text += f"{'with ' if ahead == 'level' else ''}{LABELS[rival]}"
    if count == 1:
        return f"{text} by {abs(lead.mean()):.2f} in perplexity, in one seed, which decides nothing"
    low, high = interval(lead)
    return (
        f"{text} in the mean of {count} seeds; lead in perplexity {spread(lead)} "
        f"(paired, 95 % t-interval {low:z.2f} to {high:z.2f}), ahead in {int((lead > 0).sum())} of {count}"
    )


def _shares(compared: pd.DataFrame, start: float, full: float) -> str:
    shares = 100 * compared[compared.method != "full"].groupby("method").share.mean().dropna()
    if "sf" not in shares:
        return (
            "There is no improvement to share: fine-tuning with full attention did not improve on the model "
            f"before fine-tuning ({start:.1f} before, {full:.1f} after)."
        )
    found = ", ".join(f"{LABELS[n]} {shares[n]:z.1f} %" for n in ("sf", *RIVALS) if n in shares)
    rivals = [name for name in RIVALS if name in shares]
    sf = abs(shares["sf"] - PAPER_SHARE["sf"]) <= NEAR
    s2 = any(abs(shares[name] - PAPER_SHARE["s2"]) <= NEAR for name in rivals)
    outcome = ("Did not hold", "Held in part", "Held")[sf + s2] if rivals else "Not tested"
    text = f"{outcome}: shares of the improvement near 92 % (SF-Attn) and 39 % (S²-Attn); here {found}."
    return f"{text}{_caution(shares, start, full)}"


def _caution(shares: "pd.Series[float]", start: float, full: float) -> str:
    if start < BAD_START * full:
        return ""
    text = (
        " The share says little here, because the interpolated model is so bad before fine-tuning "
        f"({start:.1f}, against {full:.1f} after it with full attention)"
    )
    return text + (
        f": every method reaches {math.floor(shares.min())} % or more."
        if shares.min() >= SATURATED
        else "; the gap to full attention says more."
    )


def _gains(compared: pd.DataFrame, original: int, target: int) -> str:
    means = compared.groupby("method").gain_from_context.mean()
    parts = [
        f"{'falls' if means[name] > 0 else 'rises'} by {abs(means[name]):.2f} with {LABELS[name]}"
        for name in ("full", "sf")
        if name in means
    ]
    return f"From {original} to {target} tokens of context perplexity {' and '.join(parts)}."
