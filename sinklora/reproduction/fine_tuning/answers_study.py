"""A chat model as it is and tuned on instructions, asked about documents through caches (Fig. 9).

Learning rates are chosen on questions about other files than those of the test.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn
from transformers import AutoTokenizer

from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.replay import Replay
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.evaluate.document_questions import AskingSpec, DocumentQuestion, answer_table
from sinklora.evaluate.longbench.predictions import truncate_middle
from sinklora.evaluate.paired_effects import difference
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import LoadedModel
from sinklora.records.checks import Count, Distinct, Positive, Share, check_fields
from sinklora.records.runs import run_records
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.retrieval.bounded_caches import pretrained_model
from sinklora.train.divergence import DivergedError
from sinklora.train.instruction_spec import InstructionSpec
from sinklora.train.run import load_trained, train

AS_IT_IS = "not tuned"

FULL_CACHE = CACHES[Full.name]

NOTHING_READ = "no document"  # what the question alone is worth


@dataclass(frozen=True)
class AnswersStudy:
    """`base` as it is, and tuned by `tuning` with each of `patterns` and `seeds`, at the best of `rates`.

    `patterns`: () for the base alone. `budget`: of the bounded caches, a share of what is read.
    Raises TypeError or ValueError naming the field.
    """

    tuning: InstructionSpec
    patterns: tuple[str, ...] = ()
    rates: Distinct[Positive] = (0.0002,)
    seeds: Distinct[int] = (0,)
    budget: Share = 0.2
    asking: AskingSpec = field(default_factory=AskingSpec)

    def __post_init__(self) -> None:
        check_fields(self)
        for pattern in self.patterns:  # an unknown one is named now, not after the first run
            self.spec(pattern, self.rates[0])

    @property
    def base(self) -> ModelUnderTest:
        """The model without any tuning."""
        return replace(pretrained_model(self.tuning.base), name=AS_IT_IS)

    def spec(self, pattern: str, rate: float, seed: int = 0) -> InstructionSpec:
        """One run of tuning."""
        return replace(self.tuning, pattern=pattern, learning_rate=rate, seed=seed)

    @property
    def caches(self) -> tuple[CachePolicy, ...]:
        """What is compared; CACHES has their names in tables."""
        return Full(), H2O(self.budget), StreamingLLM(self.budget), Replay(self.budget)


def file_of(question: DocumentQuestion | str) -> str:
    """The file that a question's document is a part of: what its id says before "#"."""
    return (question if isinstance(question, str) else question.id).partition("#")[0]


def divided(
    questions: Sequence[DocumentQuestion], validation: Count, seed: int = 0
) -> tuple[list[DocumentQuestion], list[DocumentQuestion]]:
    """At least `validation` questions to choose by, and all others to test with; no file has some of both.

    Raises ValueError where nothing would be left to test with.
    """
    files = sorted({file_of(question) for question in questions})
    random.Random(seed).shuffle(files)
    chosen: set[str] = set()
    for name in files:
        if sum(file_of(question) in chosen for question in questions) >= validation:
            break
        chosen.add(name)
    test = [question for question in questions if file_of(question) not in chosen]
    if not test:
        raise ValueError(f"validation={validation}: leaves none of {len(questions)} questions to test with")
    return [question for question in questions if file_of(question) in chosen], test


def tuned(
    study: AnswersStudy, pattern: str, rate: float, seed: int, *, runs: Path, used: list[Path]
) -> ModelUnderTest:
    """A model tuned with a pattern; trained where it is missing. Its run is added to `used`."""
    spec = study.spec(pattern, rate, seed)
    run = train(spec, runs=runs, progress=False)
    used.append(run.path)
    load: Callable[[], nn.Module] = partial(load_trained, run, spec)
    return ModelUnderTest(pattern, seed, {"run": run.path.name}, load, study.base.dtype)


def validation_nats(
    study: AnswersStudy, questions: Sequence[DocumentQuestion], *, runs: Path
) -> pd.DataFrame:
    """Nats a token of the right answers with the full cache: columns `model`, `learning rate` (missing for
    the base as it is), `file`, `nats_per_token`; the first seed. At a rate at which tuning diverges they are
    infinite, one row a file. `rows.attrs["runs"]`: of what the others are made.
    """
    used: list[Path] = []

    def answers_of(model: ModelUnderTest) -> pd.DataFrame:
        return _asked(study, _loader(study, model), model, questions, [Full()], runs, used)

    files = sorted({file_of(question) for question in questions})
    frames = [answers_of(study.base).assign(**{"learning rate": math.nan})]
    for pattern in study.patterns:
        for rate in study.rates:
            try:
                frame = answers_of(tuned(study, pattern, rate, study.seeds[0], runs=runs, used=used))
            except DivergedError:
                frame = pd.DataFrame({"model": pattern, "file": files, "nats_per_token": math.inf})
            frames.append(frame.assign(**{"learning rate": rate}))
    columns = ["model", "learning rate", "file", "nats_per_token"]
    rows = pd.concat(frames, ignore_index=True).reindex(columns=columns)
    rows.attrs["runs"] = run_records(used)
    return rows


def best_rates(rows: pd.DataFrame) -> dict[str, float]:
    """The rate of each tuned model at which the right answers cost least: rows of `validation_nats`."""
    means = rows.groupby(["model", "learning rate"], as_index=False, sort=False).nats_per_token.mean()
    best = means.loc[means.groupby("model", sort=False).nats_per_token.idxmin()]
    return {str(name): float(rate) for name, rate in zip(best.model, best["learning rate"], strict=True)}


def is_valid(rows: pd.DataFrame, rates: Mapping[str, float]) -> bool:
    """Whether tuning with full attention at its rate surely helps on the validation questions."""
    if "full" not in rates:
        return False
    files = rows.groupby(["model", "learning rate", "file"], dropna=False).nats_per_token.mean()
    base, full = files[AS_IT_IS].droplevel(0), files["full", rates["full"]]
    if np.isinf(full).any():
        return False
    return difference(base.to_numpy(), full.loc[base.index].to_numpy()).low > 0


def rates_in_words(rows: pd.DataFrame, rates: Mapping[str, float]) -> str:
    """Whether tuning helps at all, and which best rates lie at an end of those tried."""
    tried = rows["learning rate"].dropna()
    ends = [name for name, rate in rates.items() if rate in (tried.min(), tried.max())]
    helps = "helps" if is_valid(rows, rates) else "does not surely help"
    where = f"at an end of those tried: {', '.join(ends)}" if ends else "inside those tried"
    return f"Tuning with full attention {helps} on the validation questions. Best rates lie {where}."


def measure(
    study: AnswersStudy,
    questions: Sequence[DocumentQuestion],
    rates: Mapping[str, float],
    *,
    runs: Path,
) -> pd.DataFrame:
    """Rows of `answer_questions` for each model and cache, with `model`, `seed` (missing for the base),
    `cache`, `file`; NOTHING_READ: the question alone. `rows.attrs["runs"]`: of what they are made.
    """
    used: list[Path] = []
    alone = [replace(question, document="") for question in questions]
    frames = []
    for model in _models(study, rates, runs, used):
        load = _loader(study, model)
        frames.append(_asked(study, load, model, questions, study.caches, runs, used))
        of_nothing = _asked(study, load, model, alone, [Full()], runs, used)
        frames.append(of_nothing.assign(cache=NOTHING_READ))
    rows = pd.concat(frames, ignore_index=True).astype({"seed": "Int64"})
    rows.attrs["runs"] = run_records(used)
    return rows


def _models(
    study: AnswersStudy, rates: Mapping[str, float], runs: Path, used: list[Path]
) -> Iterator[ModelUnderTest]:
    yield study.base
    for pattern in study.patterns:
        for seed in study.seeds:
            yield tuned(study, pattern, rates[pattern], seed, runs=runs, used=used)


def _asked(
    study: AnswersStudy,
    load: Callable[[], LoadedModel],
    model: ModelUnderTest,
    questions: Sequence[DocumentQuestion],
    caches: Sequence[CachePolicy],
    runs: Path,
    used: list[Path],
) -> pd.DataFrame:
    answers = answer_table(load, model.identity, questions, caches, study.asking, runs=runs, used=used)
    rows = answers.assign(cache=answers.policy.map(CACHES), model=model.name, seed=model.seed)
    return rows.assign(file=rows.question.map(file_of)).drop(columns=["policy", "budget"])


def _loader(study: AnswersStudy, model: ModelUnderTest) -> Callable[[], LoadedModel]:
    """Loads the model with its tokenizer, once."""

    @cache
    def load() -> LoadedModel:
        tokenizer = AutoTokenizer.from_pretrained(model_path(study.tuning.base))
        return LoadedModel(model.ready(), tokenizer)

    return load


def cut_documents(
    questions: Sequence[DocumentQuestion], base: str, max_tokens: Count
) -> list[DocumentQuestion]:
    """The same about documents of at most so many tokens: longer ones lose their middle, as in LongBench."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(base))
    cut = []
    for question in questions:
        ids = tokenizer.encode(question.document, add_special_tokens=False)
        kept = truncate_middle(ids, max_tokens)
        text = question.document if len(kept) == len(ids) else str(tokenizer.decode(kept))
        cut.append(replace(question, document=text))
    return cut
