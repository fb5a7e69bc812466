"""Fig. 5: does a planted number come back, below, at and beyond the trained context?

The base model, its interpolation without training, and its extensions by pattern; each measurement is a run
directory, read back the next time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field
from torch import nn
from transformers import AutoTokenizer
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.pass_keys import is_right, written_answers
from sinklora.evaluate.through_cache import pass_keys
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.rope import extend_context
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, Distinct, NotNegative, check_fields, one_of
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.model_under_test import (
    DTYPES,
    ModelUnderTest,
    interpolated_name,
    unextended_base,
)
from sinklora.reproduction.names import UNTRAINED
from sinklora.train.run import load_base, load_trained, train
from sinklora.train.spec import TrainSpec, base_hash


@dataclass(frozen=True)
class RetrievalStudy:
    """What is asked: `trials` pass keys of each length (tokens), their depth swept from first to last.

    `recipe`, `patterns`, `seeds`: the extensions that are compared, each seed's asked for keys of their own;
    `changes`: fields of TrainSpec that differ from the recipe's, as pairs. `further`: tokens to which
    positions are interpolated further without training ("extended PI"); 0 leaves that out. `batch_size`
    documents are read at once, fewer where they would have more than `batch_tokens` tokens together.
    `dtype`: of the weights while the models are asked.
    Raises TypeError or ValueError naming the field.
    """

    recipe: Recipe
    patterns: Distinct[str]
    seeds: Distinct[int]
    lengths: Distinct[Count]
    trials: Annotated[int, Field(ge=2)] = 10  # the first and the last depth
    further: NotNegative = 0
    key_seed: int = 0
    batch_size: Count = 16
    batch_tokens: Count = 65_536
    dtype: Annotated[str, one_of(DTYPES)] = "float32"
    changes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.further and self.further <= self.training.context:
            raise ValueError(
                f"further={self.further}: expected more than the trained context, {self.training.context}"
            )

    @property
    def training(self) -> TrainSpec:
        """What all runs share."""
        return self.recipe.spec(self.patterns[0], **dict(self.changes))

    def rows_at_once(self, tokens: int) -> int:
        """How many documents of so many tokens are read in one batch: at least 1."""
        return max(1, min(self.batch_size, self.batch_tokens // tokens))

    def specs(self) -> Iterator[TrainSpec]:
        """The training runs of the study, seed by seed."""
        for seed in self.seeds:
            for pattern in self.patterns:
                yield self.recipe.spec(pattern, seed, **dict(self.changes))


def study_of(recipe: Recipe, parameters: Mapping[str, Any]) -> RetrievalStudy:
    """The study of a notebook's parameters."""
    changed = ("context", "steps", "recall_share")
    return RetrievalStudy(
        recipe,
        tuple(parameters["patterns"]),
        tuple(parameters["seeds"]),
        tuple(parameters["lengths"]),
        parameters["trials"],
        parameters["further"],
        batch_size=parameters["answer_batch_size"],
        batch_tokens=parameters["answer_batch_tokens"],
        dtype=parameters["dtype"],
        changes=tuple((name, parameters[name]) for name in changed),
    )


def models_under_test(
    study: RetrievalStudy, runs: Path, cache: Path | None, progress: bool
) -> Iterator[ModelUnderTest]:
    """The models of a study; extensions that are missing are trained on the way."""
    base = study.training.base
    under_test = partial(ModelUnderTest, dtype=study.dtype)
    yield replace(unextended_base(base), dtype=study.dtype)
    interpolated = {
        "base_sha256": base_hash(base),
        "rope": study.training.rope,
        "context": study.training.context,
    }
    yield under_test(UNTRAINED, None, interpolated, partial(load_base, study.training))
    for spec in study.specs():
        run = train(spec, runs=runs, cache=cache, progress=progress)
        load = partial(load_trained, run, spec)
        yield under_test(spec.pattern, spec.seed, {"run": run.path.name}, load)
        if study.further:
            name = interpolated_name(spec.pattern, study.further)
            longer = partial(_interpolated, load, study.further, spec.rope)
            yield under_test(name, spec.seed, {"run": run.path.name, "further": study.further}, longer)


def _interpolated(load: Callable[[], nn.Module], length: int, method: str) -> nn.Module:
    return extend_context(load(), length, method=method)


def measure(
    study: RetrievalStudy,
    *,
    policy: CachePolicy | None = None,
    runs: Path = Path("runs"),
    cache: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask every model for every key: columns `model`, `seed`, `tokens`, `depth` (0 to 1), `answer`, `wrote`,
    `correct`, one row a trial.

    `policy`: read and answer through a `BudgetCache` with this policy. `rows.attrs["runs"]` records the runs,
    those that trained the models as well.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(study.training.base))
    used: list[Path] = []
    frames = []
    for subject in models_under_test(study, runs, cache, progress):
        used += [runs / subject.identity["run"]] if "run" in subject.identity else []
        asked = {"lengths": study.lengths, "trials": study.trials, "key_seed": _key_seed(study, subject)}
        spec = {"model": subject.identity, "policy": policy_key(policy), **asked}
        work = partial(_ask, study, subject, policy, tokenizer, progress)
        rows = pd.DataFrame(remember(spec, work, runs=runs, prefix="retrieval", used=used))
        frames.append(rows.assign(model=subject.name, seed=subject.seed))
    frame = pd.concat(frames, ignore_index=True).astype({"seed": "Int64"})
    frame.attrs["runs"] = run_records(used)
    return frame


def _key_seed(study: RetrievalStudy, subject: ModelUnderTest) -> int:
    return study.key_seed + (subject.seed or 0)


def _ask(
    study: RetrievalStudy,
    subject: ModelUnderTest,
    policy: CachePolicy | None,
    tokenizer: Any,
    progress: bool,
) -> list[dict[str, Any]]:
    model: Any = subject.ready()
    make: Callable[[], Cache] = DynamicCache if policy is None else partial(BudgetCache, model, policy)
    rows = []
    for tokens in study.lengths:
        documents = pass_keys(tokenizer, tokens=tokens, trials=study.trials, seed=_key_seed(study, subject))
        at_once = study.rows_at_once(tokens)
        wrote = written_answers(model, tokenizer, documents, make, batch_size=at_once, progress=progress)
        for trial, (document, text) in enumerate(zip(documents, wrote, strict=True)):
            rows.append(
                {
                    "tokens": tokens,
                    "depth": trial / (study.trials - 1),
                    "answer": document.answer,
                    "wrote": text,
                    "correct": is_right(text, document),
                }
            )
    return rows
