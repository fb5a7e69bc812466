"""Fig. 5: does a planted number come back, below, at and beyond the trained context?

The base model, its interpolation without training, and its extensions by pattern; each measurement is a run
directory, read back the next time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from peft import PeftModel
from pydantic import Field
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.pass_keys import is_right, written_answers
from sinklora.evaluate.statistics import Accuracy
from sinklora.evaluate.through_cache import pass_keys
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.hf.rope import extend_context
from sinklora.lora.adapter import merge_adapter
from sinklora.records.checks import Count, Distinct, NotNegative, check_fields, one_of
from sinklora.records.runs import remember
from sinklora.reproduction.names import BASE, UNTRAINED
from sinklora.train.run import load_base, load_trained, train
from sinklora.train.spec import TrainSpec, base_hash

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class RetrievalStudy:
    """What is asked: `trials` pass keys of each length (tokens), their depth swept from first to last.

    `training`, `patterns`, `seeds`: the extensions that are compared. `further`: tokens to which positions
    are interpolated further without training ("extended PI"); 0 leaves that out. `batch_size` documents are
    read at once, fewer where they would have more than `batch_tokens` tokens together. `dtype`: of the
    weights while the models are asked.
    Raises TypeError or ValueError naming the field.
    """

    training: TrainSpec
    patterns: Distinct[str]
    seeds: Distinct[int]
    lengths: Distinct[Count]
    trials: Annotated[int, Field(ge=2)] = 10  # the first and the last depth
    further: NotNegative = 0
    key_seed: int = 0
    batch_size: Count = 16
    batch_tokens: Count = 65_536
    dtype: Annotated[str, one_of(DTYPES)] = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.further and self.further <= self.training.context:
            raise ValueError(
                f"further={self.further}: expected more than the trained context, {self.training.context}"
            )

    def rows_at_once(self, tokens: int) -> int:
        """How many documents of so many tokens are read in one batch: at least 1."""
        return max(1, min(self.batch_size, self.batch_tokens // tokens))

    def specs(self) -> Iterator[TrainSpec]:
        """The training runs of the study, seed by seed."""
        for seed in self.seeds:
            for pattern in self.patterns:
                yield TrainSpec(**{**_fields(self.training), "seed": seed, "pattern": pattern})


def _fields(spec: TrainSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


@dataclass(frozen=True)
class Subject:
    """A model to be asked: how it is called, what identifies it, how it is loaded, and the type (one of
    DTYPES) that its weights then get.
    """

    name: str
    seed: int | None
    key: dict[str, Any]
    load: Callable[[], nn.Module]
    dtype: str = "float32"

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers are stored under; measurements made before there was a dtype are found."""
        return self.key if self.dtype == "float32" else {**self.key, "dtype": self.dtype}

    def ready(self) -> Any:
        """The model itself: adapters merged, on the device, in evaluation mode."""
        loaded = self.load()
        model: Any = merge_adapter(loaded) if isinstance(loaded, PeftModel) else loaded
        for weight in model.parameters():  # buffers keep their type: rotary angles need float32
            weight.data = weight.data.to(getattr(torch, self.dtype))
        return model.to(default_device()).eval()


def subjects(study: RetrievalStudy, runs: Path, cache: Path | None, progress: bool) -> Iterator[Subject]:
    """The models of a study; extensions that are missing are trained on the way."""
    for subject in _subjects(study, runs, cache, progress):
        yield replace(subject, dtype=study.dtype)


def base_subject(base: str) -> Subject:
    """The model as it is, without any extension."""
    return Subject(
        BASE, None, {"base_sha256": base_hash(base), "context": "as trained"}, partial(_load, base)
    )


def _subjects(study: RetrievalStudy, runs: Path, cache: Path | None, progress: bool) -> Iterator[Subject]:
    base = study.training.base
    yield base_subject(base)
    interpolated = {
        "base_sha256": base_hash(base),
        "rope": study.training.rope,
        "context": study.training.context,
    }
    yield Subject(UNTRAINED, None, interpolated, partial(load_base, study.training))
    for spec in study.specs():
        run = train(spec, runs=runs, cache=cache, progress=progress)
        load = partial(load_trained, run, spec)
        yield Subject(spec.pattern, spec.seed, {"run": run.path.name}, load)
        if study.further:
            name = interpolated_name(spec.pattern, study.further)
            longer = partial(_interpolated, load, study.further, spec.rope)
            yield Subject(name, spec.seed, {"run": run.path.name, "further": study.further}, longer)


def interpolated_name(pattern: str, further: int) -> str:
    """How an extension is called whose positions are interpolated further without training."""
    return f"{pattern}, interpolated to {further}"


def only_interpolated(rows: pd.DataFrame, patterns: Sequence[str], further: int) -> pd.DataFrame:
    """The rows of the extensions interpolated further, under the names of their patterns."""
    names = {interpolated_name(pattern, further): pattern for pattern in patterns}
    mine = rows[rows.model.isin(names)]
    return mine.assign(model=mine.model.map(names))


def _load(base: str) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return model


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
    """Every trial: columns ``model``, ``seed``, ``tokens``, ``depth`` (0 to 1), ``answer``, ``wrote``,
    ``correct``.

    `policy`: read and answer through a `BudgetCache` with this policy.
    """
    tokenizer = AutoTokenizer.from_pretrained(study.training.base)
    asked = {"lengths": study.lengths, "trials": study.trials, "key_seed": study.key_seed}
    frames = []
    for subject in subjects(study, runs, cache, progress):
        spec = {"model": subject.identity, "policy": policy_key(policy), **asked}
        work = partial(_ask, study, subject, policy, tokenizer, progress)
        rows = pd.DataFrame(remember(spec, work, runs=runs, prefix="retrieval"))
        frames.append(rows.assign(model=subject.name, seed=subject.seed))
    return pd.concat(frames, ignore_index=True).astype({"seed": "Int64"})


def _ask(
    study: RetrievalStudy,
    subject: Subject,
    policy: CachePolicy | None,
    tokenizer: Any,
    progress: bool,
) -> list[dict[str, Any]]:
    model: Any = subject.ready()
    make: Callable[[], Cache] = DynamicCache if policy is None else partial(BudgetCache, model, policy)
    rows = []
    for tokens in study.lengths:
        documents = pass_keys(tokenizer, tokens=tokens, trials=study.trials, seed=study.key_seed)
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


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of exact answers by model and length over all seeds and depths, with 95 % Wilson intervals."""
    lines = []
    for (model, tokens), group in rows.groupby(["model", "tokens"], sort=False):
        accuracy = Accuracy(int(group.correct.sum()), len(group))
        low, high = accuracy.interval()
        seeds = max(1, group.seed.nunique())
        line = {"model": model, "tokens": tokens, "accuracy": accuracy.share, "low": low, "high": high}
        lines.append({**line, "trials": len(group), "seeds": seeds})
    return pd.DataFrame(lines)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Models by lengths, as text: share of exact answers and its interval."""
    found = accuracies(rows)
    cells = [
        f"{a:.2f} ({low:.2f} to {high:.2f})"
        for a, low, high in zip(found.accuracy, found.low, found.high, strict=True)
    ]
    wide = found.assign(cell=cells).pivot(index="model", columns="tokens", values="cell")
    wide = wide.reindex(list(dict.fromkeys(found.model)))
    wide.columns = [str(tokens) for tokens in wide.columns]
    return wide.reset_index()


def failures(rows: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """Some wrong answers of each model, the shortest documents first."""
    wrong = rows[~rows.correct.astype(bool)].sort_values("tokens", kind="stable")
    chosen = wrong.groupby("model", sort=False).head(count)
    return chosen[["model", "seed", "tokens", "depth", "answer", "wrote"]].reset_index(drop=True)
