"""What Fig. 6 and Table 5 measure on a pretrained model: passages of a text, questions where there are any,
and what generation costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.cache.policies import CachePolicy
from sinklora.pretrained.fetch import model_path
from sinklora.reproduction.cache.generation_study import GenerationStudy
from sinklora.reproduction.cache.question_study import (
    OPENBOOKQA,
    QuestionStudy,
    answer_questions,
    with_answers,
)
from sinklora.reproduction.cache.study import PERPLEXITY, at_budgets, policies_of_figure_6
from sinklora.reproduction.cache.text_study import TextStudy, measure_text
from sinklora.reproduction.names import model_title
from sinklora.train.sources import CorpusSpec, present_source

BUDGET = 0.2  # of the prompt, at which generation is timed


@dataclass(frozen=True)
class RealModelPlan:
    """Which parts of a corpus are read (`text`), which `questions` are asked (None: none), and what is timed
    (`generation`).

    `preferred`: the source that was named; that of `corpus` stands in where it is not on this machine.
    """

    text: TextStudy
    corpus: CorpusSpec
    preferred: str
    questions: QuestionStudy | None
    generation: GenerationStudy

    @property
    def title(self) -> str:
        """What tables call the model."""
        return model_title(self.text.base)

    def text_in_words(self, rows: pd.DataFrame) -> str:
        """From which documents the passages are of which `rows` were measured."""
        count = rows[rows.measure == PERPLEXITY].cluster.nunique()
        told = f"{count} documents of {self.corpus.source}, split {self.corpus.split}"
        missing = (
            "" if self.corpus.source == self.preferred else f" ({self.preferred} is not on this machine)"
        )
        return f"{told}{missing}"

    def questions_in_words(self) -> str:
        """Which questions are asked."""
        if self.questions is None:
            return "Questions were left out: no file of them was found or named."
        return f"Questions: OpenBookQA, {self.questions.few_shot} shown before each, {self.questions.metric}."


def plan_of(parameters: Mapping[str, Any]) -> RealModelPlan | None:
    """The plan of a notebook's parameters, those named `real_…`; None where they name no model.

    Raises TypeError or ValueError for what could not be measured later.
    """
    values = {name.removeprefix("real_"): value for name, value in parameters.items() if name[:5] == "real_"}
    if not values["base"]:
        return None
    text = TextStudy(
        base=values["base"],
        prompt_tokens=values["prompt"],
        scored_tokens=values["scored"],
        passages=values["passages"],
        per_document=values["per_document"],
        fact_tokens=values["fact_tokens"],
        fact_passages=values["fact_passages"],
        seed=parameters["seeds"][0],
    )
    present = present_source(values["source"])
    corpus = CorpusSpec(present, values["split"], values["min_characters"], max_characters=2_000_000)
    settings = tuple((batch, prompt) for batch, prompt in values["cost_settings"])
    generation = GenerationStudy(
        values["base"],
        settings=settings,
        budget=BUDGET,
        new_tokens=values["cost_tokens"],
        rounds=values["cost_rounds"],
    )
    return RealModelPlan(text, corpus, values["source"], _questions(values), generation)


def _questions(values: Mapping[str, Any]) -> QuestionStudy | None:
    """The questions that are asked; None where none are named or their file is not on this machine."""
    from_hub = values["questions"] == OPENBOOKQA
    if not from_hub and not Path(values["questions"]).is_file():
        return None
    return QuestionStudy(
        values["base"],
        None if from_hub else values["questions"],
        shown=values["shown_questions"] or None,
        few_shot=values["few_shot"],
        limit=values["question_count"],
        metric="acc_norm",
    )


def fetched(plan: RealModelPlan | None) -> RealModelPlan | None:
    """The plan, when its model is on this machine: fetched where it is missing. Raises FetchError."""
    if plan is not None:
        model_path(plan.text.base)
    return plan


def compared(budget: float) -> dict[str, CachePolicy]:
    """Those of Fig. 6 but Novelty, which is worse here than the policies that it was made to beat."""
    return {name: policy for name, policy in policies_of_figure_6(budget).items() if name != "novelty"}


def measure_real_model(
    plan: RealModelPlan,
    budgets: Sequence[float],
    question_budgets: Sequence[float],
    *,
    runs: Path = Path("runs"),
    cache: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The policies of `compared` at their budgets on the passages, and on the questions where there are any.

    One row per policy, budget, measure and item; `rows.attrs` as `with_answers` makes them.
    """
    chosen = at_budgets(compared, budgets)
    rows = measure_text(plan.text, plan.corpus, chosen, runs=runs, cache=cache, progress=progress)
    if plan.questions is None:
        return with_answers(rows, None)
    asked = at_budgets(compared, question_budgets)
    return with_answers(rows, answer_questions(plan.questions, asked, runs=runs))
