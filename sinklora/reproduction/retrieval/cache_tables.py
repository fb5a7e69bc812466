"""Pass keys and topics by cache: shares with their intervals, differences to the full cache in pairs, and
whether the full cache does better than chance.
"""

import math
from typing import Any

import pandas as pd

from sinklora.evaluate.clustered_means import mean_interval
from sinklora.evaluate.statistics import Accuracy
from sinklora.records.tables import Column, Estimate, Table, part
from sinklora.reproduction.retrieval.bounded_caches import CANNOT, FULL

CHANCE_NATS = 5 * math.log(10)  # of five digits, each as likely as any other

EXACT, NATS, LIKELIEST = "exact", "nats of the digits", "likeliest"

WORSE = "nats more than the full cache"


def _share(heading: str, right: "pd.Series[Any]") -> dict[str, float]:
    accuracy = Accuracy(int(right.sum()), len(right))
    low, high = accuracy.interval()
    return {heading: accuracy.share, part(heading, "low"): low, part(heading, "high"): high}


def _mean(heading: str, values: "pd.Series[float]") -> dict[str, float]:
    mean, low, high = mean_interval(values.tolist())
    return {heading: mean, part(heading, "low"): low, part(heading, "high"): high}


def keys_table(rows: pd.DataFrame) -> Table:
    """Pass keys by length and cache: exact answers (Wilson intervals), nats of the digits, and how many more
    than with the full cache, in pairs (95 % intervals over passages).

    `remark` marks lengths at which the full cache's nats are not below chance (the interval reaches it), and
    caches whose are not where the full cache's are.
    """
    lines = []
    for tokens, group in rows.groupby("tokens"):
        full = group[group.cache == FULL].set_index("trial").nats
        measurable = mean_interval(full.tolist()).high < CHANCE_NATS
        for name, of_cache in group.groupby("cache", sort=False):
            nats = of_cache.set_index("trial").nats
            line: dict[str, Any] = {
                "tokens": tokens,
                "cache": name,
                "n": len(of_cache),
                **_share(EXACT, of_cache.correct),
            }
            line |= _mean(NATS, nats)
            if name != FULL:
                line |= _mean(WORSE, nats - full)
            beyond = line[part(NATS, "high")] >= CHANCE_NATS
            lines.append(line | {"remark": "" if not beyond and measurable else _remark(measurable)})
    columns = [Column("tokens"), Column("cache"), Column("n"), Estimate(EXACT), Estimate(NATS)]
    return Table(pd.DataFrame(lines), [*columns, Estimate(WORSE), Column("remark")])


def _remark(measurable: bool) -> str:
    return "at chance" if measurable else CANNOT


def topics_table(rows: pd.DataFrame) -> Table:
    """Conversations by set and cache: first topics named, and first topics that are the likeliest of their
    conversation, beside chance for the latter (Wilson intervals, 95 %).

    `remark` marks sets at which the full cache's interval of the latter reaches down to chance.
    """
    lines = []
    for name, group in rows.groupby("set", sort=False):
        chance = float((1 / group.topics.astype(float)).mean())
        full = _share(LIKELIEST, group[group.cache == FULL]["rank"] == 1)
        measurable = full[part(LIKELIEST, "low")] > chance
        for cache, of_cache in group.groupby("cache", sort=False):
            line: dict[str, Any] = {
                "conversations": name,
                "cache": cache,
                "n": len(of_cache),
                **_share(EXACT, of_cache.correct),
            }
            line |= {**_share(LIKELIEST, of_cache["rank"] == 1), "chance": chance}
            line |= {"mean rank": float(of_cache["rank"].mean())}
            beyond = line[part(LIKELIEST, "low")] > chance
            lines.append(line | {"remark": "" if beyond and measurable else _remark(measurable)})
    columns = [Column("conversations"), Column("cache"), Column("n"), Estimate(EXACT), Estimate(LIKELIEST)]
    return Table(pd.DataFrame(lines), [*columns, Column("chance"), Column("mean rank"), Column("remark")])


def side_by_side(rows: pd.DataFrame, index: list[str], values: list[str]) -> pd.DataFrame:
    """One line for each thing that was asked, the values of each cache beside each other."""
    wide = rows.pivot_table(index=index, columns="cache", values=values, sort=False, aggfunc="first")
    caches = list(dict.fromkeys(rows.cache))
    wide = wide[[(value, cache) for value in values for cache in caches]]
    wide.columns = pd.Index([f"{value}, {cache}" for value in values for cache in caches])
    return wide.reset_index()


def lengths_in_words(rows: pd.DataFrame) -> str:
    """At which lengths each cache keeps the pass key: its digits cost surely less than by chance."""
    frame = keys_table(rows).frame
    measured = frame[frame.remark != CANNOT]
    if measured.empty:
        return "Cannot be measured: with the full cache the digits cost as much as by chance at every length."
    kept = [
        f"{cache} {', '.join(map(str, group[group.remark == ''].tokens)) or 'none'}"
        for cache, group in measured.groupby("cache", sort=False)
    ]
    return f"Lengths (tokens) at which the digits cost surely less than by chance: {'; '.join(kept)}."


def topics_in_words(rows: pd.DataFrame) -> str:
    """Which sets can be measured, and the share of likeliest first topics of each cache in those."""
    frame = topics_table(rows).frame
    without = frame[frame.remark == CANNOT].conversations.unique()
    measured = frame[~frame.conversations.isin(without)]
    said = [
        f"{name}: " + ", ".join(f"{line.cache} {line.likeliest:.2f}" for line in group.itertuples())
        for name, group in measured.groupby("conversations", sort=False)
    ]
    lost = f"At chance with the full cache, so it {CANNOT}: {', '.join(without)}." if len(without) else ""
    return " ".join(filter(None, ["; ".join(said) + "." if said else "", lost]))
