"""Measurements compared: gap to full attention, gain from context, share of the improvement; and the
verdict that is made of them.
"""

import math

import pandas as pd

from sinklora.evaluate.statistics import judge
from sinklora.reproduction.names import LABELS, UNTRAINED
from sinklora.reproduction.report.published import published_value

KEYS = ["test_set", "method", "seed"]

RIVALS = ("s2_wrapped", "s2")  # the two readings of S²-Attn

PAPER_SHARES = {
    "sf": "SF-Attn share of full attention's improvement",
    "s2": "S2-Attn share of full attention's improvement",
}
"""The abstract's rows."""

NEAR = 5  # points: a share this close to the abstract's counts as reproduced

SATURATED = 90  # per cent: where every method reaches this, the share tells nothing

BAD_START = 2  # p0 / pf from which the start, not the method, decides the share


def comparisons(rows: pd.DataFrame, original: int, target: int) -> pd.DataFrame:
    """What each fine-tuned model gains: one row per test set, method and seed (METHOD, "share").

    `gap_to_full` = pm - pf at `target` tokens, same seed; `gain_from_context` = perplexity at
    `original` minus at `target`, same model and tokens; `share` = (p0 - pm) / (p0 - pf), p0 without
    fine-tuning (the abstract's shares), NaN where full attention does not improve on p0.
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


def of_test_set(rows: pd.DataFrame, test_set: str) -> pd.DataFrame:
    """The rows of one test set; raises ValueError if it was not measured."""
    chosen = rows[rows.test_set == test_set]
    if chosen.empty:
        raise ValueError(f"test_set={test_set!r}: measured are {sorted(rows.test_set.unique())}")
    return chosen


def verdict(rows: pd.DataFrame, test_set: str, original: int, target: int) -> str:
    """What became of the paper's claims, from the numbers alone.

    Is SF-Attn better than S²-Attn (each reading of it); does the longer context help; are the shares near the
    abstract's; which reading of SF-Attn is better. A difference counts where its paired 95 %
    t-interval leaves out 0: one seed decides nothing. Raises ValueError as `comparisons` does.
    """
    chosen = of_test_set(rows, test_set)
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
    reading = better.get(outcome, outcome.lower())
    return f"Better reading of SF-Attn: {reading}; without the half shift perplexity is {words}."


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
    said = ", ".join(f"{LABELS[name]} {shares[name]:z.1f} %" for name in ("sf", *rivals))
    paper = {name: 100 * published_value("Abstract", row) for name, row in PAPER_SHARES.items()}
    sf = bool(abs(shares["sf"] - paper["sf"]) <= NEAR)
    s2 = any(abs(shares[name] - paper["s2"]) <= NEAR for name in rivals)
    outcome = ("Did not hold", "Held in part", "Held")[int(sf) + int(s2)] if rivals else "Not tested"
    seeds = tuned.seed.nunique()
    return (
        f"{outcome}: the share of the improvement is near {paper['sf']:g} % with SF-Attn and "
        f"{paper['s2']:g} % with S²-Attn; here {said} (n = {seeds}).{_caution(shares, start, full)}"
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
