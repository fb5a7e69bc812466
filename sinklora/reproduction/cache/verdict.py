"""What the measurements say of H2O, of Local, of unpublished policies, and of what generation costs."""

from collections.abc import Sequence

import pandas as pd

from sinklora.evaluate.statistics import interval
from sinklora.reproduction.cache.study import PERPLEXITY, our_policies, published_policies
from sinklora.reproduction.cache.tables import duels, lead, measures
from sinklora.reproduction.report.published import published_value


def leads_over_local(rows: pd.DataFrame) -> str:
    """At which budgets H2O is better or worse than Local, by measure; and a note on unpublished policies."""
    sentences = []
    budgets = sorted(rows[rows.policy == "h2o"].budget.unique())
    for measure in measures(rows):
        wins, losses = [], []
        for budget in budgets:
            low, high = interval(lead(rows, measure, "h2o", "local", budget))
            if low > 0:
                wins.append(budget)
            if high < 0:
                losses.append(budget)
        won, lost = percents(wins), percents(losses)
        sentences.append(f"{measure}: H2O is better than Local at {won}, worse at {lost}.")
    ours = [_note_on(name, rows) for name in our_policies() if name in set(rows.policy)]
    return " ".join([*sentences, *ours])


def _note_on(policy: str, rows: pd.DataFrame) -> str:
    measured = set(rows.policy)
    found, rivals = duels(rows, policy), ", ".join(name for name in published_policies() if name in measured)
    better, compared = int((found.low > 0).sum()), len(found)
    worse = found[found.worse]
    if worse.empty:
        return (
            f"Note on {policy}, not published: never worse than the best of {rivals} within the paired "
            f"95 % intervals ({compared} comparisons); better in {better}."
        )
    places = zip(worse.measure, worse.budget, strict=True)
    where = ", ".join(f"{measure} at {100 * budget:g} %" for measure, budget in places)
    return (
        f"Note on {policy}, not published: worse than the best of {rivals} in {where}, {len(worse)} of "
        f"{compared} comparisons ({0.025 * compared:.1f} would be by chance alone); better in {better}."
    )


def variants_verdict(rows: pd.DataFrame) -> str:
    """Which policy does best for which use, and whether a variant of H2O is nowhere worse than Local."""
    sentences = []
    for measure in measures(rows):
        mine = rows[(rows.measure == measure) & (rows.policy != "full")]
        best = []
        budgets = sorted(mine.budget.unique())
        for budget in budgets:
            means = mine[mine.budget == budget].groupby("policy", sort=False).value.mean()
            winner = str(means.idxmin() if measure == PERPLEXITY else means.idxmax())
            others = [str(name) for name in means.index if name != winner]
            level = [n for n in others if interval(lead(rows, measure, winner, n, budget))[0] <= 0]
            also = f" ({len(level)} of {len(others)} others not surely worse)" if level else ""
            best.append(f"{winner} at {percents([budget])}{also}")
        variants = [name for name in dict.fromkeys(mine.policy) if name.startswith("h2o")]
        level = [
            name
            for name in variants
            if all(interval(lead(rows, measure, name, "local", budget))[1] >= 0 for budget in budgets)
        ]
        sentences.append(
            f"{measure}: best are {'; '.join(best)}. Of H2O's variants, nowhere worse than Local within the "
            f"paired 95 % intervals: {'; '.join(level) or 'none'}."
        )
    return " ".join(sentences)


def percents(budgets: Sequence[float]) -> str:
    """Budgets as they are spoken of."""
    return ", ".join(f"{100 * budget:g} %" for budget in budgets) or "no budget"


def cost_verdict(costs: pd.DataFrame) -> str:
    """What H2O at 20 % gains over transformers' cache, and over the same code with everything kept."""
    rows = costs.set_index("cache")
    fast, kept = rows.loc["h2o 20%"], rows.loc["full (ours)"]
    h2o, full = (published_value("Table 5", policy) for policy in ("H2O", "Full"))
    own = fast["decoded tokens/s"] / kept["decoded tokens/s"]
    return (
        f"H2O at 20 % decodes {fast['decoding, times faster']:.1f} times as fast as transformers' cache, "
        f"which copies itself at every step, and {own:.1f} times as fast as ours with everything kept; "
        f"the prompt takes {fast['prompt, ratio']:.2f} times as long. The model's decoding is bound by its "
        f"cache; where weights weigh more, less is gained. The paper reports {h2o:g} hours against {full:g} "
        "on a whole benchmark, with 100 % of the cache; such times do not compare."
    )
