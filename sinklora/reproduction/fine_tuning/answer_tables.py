"""Answers about documents as tables: by model and cache, learning rates, and three of them side by side."""

from typing import Any

import pandas as pd

from sinklora.evaluate.paired_effects import Effect
from sinklora.records.tables import Column, Estimate, Number, Table, part
from sinklora.reproduction.extension.tables import OrDiverged
from sinklora.reproduction.fine_tuning.answers_study import AS_IT_IS, FULL_CACHE
from sinklora.reproduction.fine_tuning.claims import by_file, mean_effect, nats
from sinklora.reproduction.names import LABELS

NATS, LOST, F1, EXACT = "nats a token", "nats above the full cache", "F1 (%)", "exact (%)"

MODEL = "tuned with"

QUARTILES = (0.25, 0.5, 0.75)


def model_label(name: str) -> str:
    """What a table calls a model: the pattern that it was tuned with."""
    return name if name == AS_IT_IS else LABELS.get(name, name)


def answers_table(rows: pd.DataFrame) -> Table:
    """A line for each model and cache: nats a token of the right answers, how much above the same model's
    with the full cache (in pairs), F1 and exact matches of what it wrote; 95 % intervals (seeds and files).
    """
    lines = []
    for (model, cache), group in rows.groupby(["model", "cache"], sort=False):
        nats_by_file = by_file(group, "nats_per_token")
        line: dict[str, Any] = {MODEL: model_label(str(model)), "cache": cache}
        line |= {"questions": group.question.nunique(), "files": nats_by_file.shape[1]}
        line |= _cells(NATS, mean_effect(nats_by_file))
        if cache != FULL_CACHE:
            line |= _cells(LOST, mean_effect(nats_by_file - nats(rows, str(model), FULL_CACHE)))
        line |= _cells(F1, mean_effect(by_file(group, "f1", 100)))
        line |= {EXACT: 100 * float(group.exact.mean())}
        lines.append(line)
    columns = [Column(MODEL), Column("cache"), Column("questions"), Column("files")]
    shown = [*columns, Estimate(NATS), Estimate(LOST), Estimate(F1), Number(EXACT, ".1f")]
    return Table(pd.DataFrame(lines), shown)


def _cells(heading: str, effect: Effect) -> dict[str, float]:
    return {heading: effect.estimate, part(heading, "low"): effect.low, part(heading, "high"): effect.high}


def tuning_rates_table(rows: pd.DataFrame, chosen: dict[str, float]) -> Table:
    """Nats a token on the validation questions by model and learning rate; which was chosen."""
    groups = ["model", "learning rate"]
    means = rows.groupby(groups, sort=False, dropna=False, as_index=False).nats_per_token.mean()
    lines = [
        {
            MODEL: model_label(model),
            "learning rate": rate,
            NATS: mean_nats,
            "chosen": "chosen" if chosen.get(model) == rate else "",
        }
        for model, rate, mean_nats in means.itertuples(index=False, name=None)
    ]
    return Table(
        pd.DataFrame(lines), [Column(MODEL), Number("learning rate"), OrDiverged(NATS), Column("chosen")]
    )


def shown_questions(rows: pd.DataFrame) -> list[str]:
    """Questions to show, by a rule that no text has a part in: those at the quartiles of all, ordered by how
    many nats a token the model as it is needs with the full cache for the right answer.
    """
    asked = rows[(rows.model == AS_IT_IS) & (rows.cache == FULL_CACHE)]
    ordered = asked.sort_values(["nats_per_token", "question"]).question.tolist()
    return [str(ordered[round(share * (len(ordered) - 1))]) for share in QUARTILES]


def side_by_side(rows: pd.DataFrame, answers: dict[str, tuple[str, ...]]) -> Table:
    """What each model wrote under each cache to the `shown_questions`, beside a right answer; first seed."""
    lines = []
    for question in shown_questions(rows):
        of_question = rows[rows.question == question].drop_duplicates(["model", "cache"])
        columns = of_question[["model", "cache", "written", "nats_per_token"]]
        for model, cache, written, nats_per_token in columns.itertuples(index=False, name=None):
            line = {"question": question, "right": answers[question][0], MODEL: model_label(model)}
            lines.append({**line, "cache": cache, "wrote": written, NATS: nats_per_token})
    return Table(pd.DataFrame(lines))
