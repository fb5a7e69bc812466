"""What the measurements say of unpublished policies, of H2O's variants, and of what generation costs."""

from collections.abc import Sequence

import pandas as pd

from sinklora.reproduction.cache.paired_outcomes import BETTER, WORSE, outcomes
from sinklora.reproduction.cache.study import PERPLEXITY, our_policies, published_policies
from sinklora.reproduction.cache.tables import duels, lead, measures
from sinklora.reproduction.report.published import published_value


def notes_on_ours(rows: pd.DataFrame) -> str:
    """Whether each unpublished policy is anywhere worse than the best published one; "" for none of them."""
    return " ".join(_note_on(name, rows) for name in our_policies() if name in set(rows.policy))


def _note_on(policy: str, rows: pd.DataFrame) -> str:
    measured = set(rows.policy)
    pairs, rivals = duels(rows, policy), ", ".join(name for name in published_policies() if name in measured)
    better, compared = int((pairs.outcome == BETTER).sum()), len(pairs)
    worse = pairs[pairs.outcome == WORSE]
    if worse.empty:
        return (
            f"Note on {policy}, not published: nowhere surely worse than the best of {rivals} ({compared} "
            f"comparisons, Holm's correction); better in {better}."
        )
    places = zip(worse.measure, worse.budget, strict=True)
    where = ", ".join(f"{measure} at {100 * budget:g} %" for measure, budget in places)
    return (
        f"Note on {policy}, not published: worse than the best of {rivals} in {where}, {len(worse)} of "
        f"{compared} comparisons (Holm's correction); better in {better}."
    )


def variants_verdict(rows: pd.DataFrame) -> str:
    """Which policy does best for which use, and whether a variant of H2O is nowhere worse than Local.

    For each measure one correction (Holm) for either question.
    """
    return " ".join(f"{measure}: {_best_and_level(rows, measure)}" for measure in measures(rows))


def _best_and_level(rows: pd.DataFrame, measure: str) -> str:
    measured = rows[(rows.measure == measure) & (rows.policy != "full")]
    budgets = sorted(measured.budget.unique())
    means = {at: measured[measured.budget == at].groupby("policy", sort=False).value.mean() for at in budgets}
    winners = {at: str(m.idxmin() if measure == PERPLEXITY else m.idxmax()) for at, m in means.items()}
    rivals = [(at, str(name)) for at in budgets for name in means[at].index if name != winners[at]]
    leads = [lead(rows, measure, winners[at], name, at).to_numpy() for at, name in rivals]
    level = [at for (at, _), word in zip(rivals, outcomes(leads), strict=True) if word != BETTER]
    best = []
    for at in budgets:
        others, near = len(means[at]) - 1, level.count(at)
        also = f" ({near} of {others} others not surely worse)" if near else ""
        best.append(f"{winners[at]} at {percents([at])}{also}")
    variants = [name for name in dict.fromkeys(measured.policy) if name.startswith("h2o")]
    against = [(name, at) for name in variants for at in budgets]
    decided = outcomes([lead(rows, measure, name, "local", at).to_numpy() for name, at in against])
    worse = {name for (name, _), word in zip(against, decided, strict=True) if word == WORSE}
    unbeaten = "; ".join(name for name in variants if name not in worse) or "none"
    return f"best are {'; '.join(best)}. Of H2O's variants, nowhere surely worse than Local: {unbeaten}."


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
