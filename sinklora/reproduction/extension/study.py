"""Context extension compared: every pattern with every seed, and what needs no training, on the same texts.

Training runs and measurements are run directories: a stopped study goes on where it was, a finished one is
read back. One row is one piece of text read by one model; `comparison` says what is made of them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoConfig

from sinklora.hf.rope_scaling import INTERPOLATIONS
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, Distinct, check_among, check_fields, check_holds
from sinklora.records.runs import run_records
from sinklora.reproduction.extension.readings import FULL, Reading, read
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.model_under_test import ModelUnderTest, unextended_base
from sinklora.reproduction.names import untrained_name
from sinklora.train.run import load_base, load_trained, train
from sinklora.train.spec import TrainSpec, base_hash


@dataclass(frozen=True)
class ExtensionStudy:
    """`patterns` of a recipe, each trained with each seed, read in windows of `contexts` tokens.

    `test_sets`: names of the recipe's texts. `own_attention`: patterns whose models are also read with the
    attention they were trained with, at the trained context. `changes`: fields of TrainSpec that differ from
    the recipe's, as pairs.
    Raises ValueError naming the argument for anything that training or testing would refuse later.
    """

    recipe: Recipe
    patterns: Distinct[str]
    seeds: Distinct[int]
    test_sets: Distinct[str]
    contexts: Distinct[Count]
    own_attention: tuple[str, ...] = ()
    changes: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_among("own_attention", self.own_attention, "patterns", self.patterns)
        for name in self.test_sets:
            if name not in self.recipe.texts:
                raise ValueError(
                    f"test_sets={self.test_sets}: the recipe's texts are {sorted(self.recipe.texts)}"
                )
            if self.recipe.texts[name].tokens < max(self.contexts):
                raise ValueError(
                    f"contexts={self.contexts}: expected at most the {self.recipe.texts[name].tokens} tokens "
                    f"of a piece of {name!r}"
                )
        for _ in self.specs():  # an unknown pattern is named now, not after the first run
            pass

    @property
    def training(self) -> TrainSpec:
        """What all runs share."""
        return self.recipe.spec(self.patterns[0], **dict(self.changes))

    def specs(self) -> Iterator[TrainSpec]:
        """The training runs of the study, seed by seed."""
        for seed in self.seeds:
            for pattern in self.patterns:
                yield self.recipe.spec(pattern, seed, **dict(self.changes))


def study_of(recipe: Recipe, parameters: Mapping[str, Any]) -> ExtensionStudy:
    """The study of Tables 1 and 2 of a notebook's parameters: those with the names of fields.

    Raises ValueError as well for parameters of which no table could be made once all is trained.
    """
    study = ExtensionStudy(
        recipe,
        tuple(parameters["patterns"]),
        tuple(parameters["seeds"]),
        ("Table 1", "Table 2"),
        tuple(parameters["test_contexts"]),
        tuple(parameters["own_attention"]),
    )
    check_compared(recipe, study.patterns, study.own_attention, study.contexts, "test_contexts")
    check_equal_time(study, parameters["equal_time"])
    return study


def check_compared(
    recipe: Recipe,
    patterns: Sequence[str],
    own_attention: Sequence[str],
    contexts: Sequence[int],
    name: str = "contexts",
) -> None:
    """Raise ValueError unless tables can be made of what is read: `patterns` beside full attention at the
    trained context, SF-Attn at the base's own too, and some of them with their own attention. `name`: what
    the argument with the contexts is called.
    """
    check_holds("patterns", patterns, ["full"], "every pattern is held against full attention")
    at_base = [recipe.original_context] if "sf" in patterns else []
    why = "there patterns are compared with each other and with the base"
    check_holds(name, contexts, [*at_base, recipe.training.context], why)
    if not own_attention:
        raise ValueError(f"own_attention=[]: expected at least one of patterns={list(patterns)}")


def check_equal_time(study: ExtensionStudy, patterns: Sequence[str]) -> None:
    """Raise ValueError unless full attention can be trained in the time of `patterns`: some that the study
    trains, full attention itself not among them.
    """
    sparse = [name for name in study.patterns if name != "full"]
    if not patterns or not set(patterns) <= set(sparse):
        raise ValueError(
            f"equal_time={list(patterns)}: expected some of {sparse}, which patterns names beside 'full'"
        )


def measure(study: ExtensionStudy, *, runs: Path, progress: bool = True) -> pd.DataFrame:
    """Train what is missing and read everything: the rows of `readings.read`, with the training runs among
    those that they were made of. Methods that need no training: the base as it is (at its own context alone),
    and with each way to extend positions.
    """
    used: list[Path] = []
    readings = [*baselines(study), *trained(study, runs=runs, progress=progress, used=used)]
    return read(study.recipe, study.test_sets, readings, runs=runs, progress=progress, used=used)


def attention_cost(spec: TrainSpec) -> float:
    """Query-key pairs over causal pairs, mean over the steps of a training: 1 is full attention."""
    heads = AutoConfig.from_pretrained(model_path(spec.base)).num_attention_heads
    used = Counter(spec.attention_pattern(step) for step in range(spec.steps))
    return sum(pattern.density(heads, spec.context) * count for pattern, count in used.items()) / spec.steps


def training_curves(study: ExtensionStudy, *, runs: Path) -> pd.DataFrame:
    """The training loss of every step of every run: columns method, seed, step, loss. `attrs["runs"]` records
    the runs.
    """
    frames, used = [], list[Path]()
    for spec in study.specs():
        used.append(train(spec, runs=runs, progress=False).path)
        curve = pd.read_csv(used[-1] / "loss.csv")
        frames.append(curve[["step", "loss"]].assign(method=spec.pattern, seed=spec.seed))
    curves = pd.concat(frames, ignore_index=True)
    curves.attrs["runs"] = run_records(used)
    return curves


def baselines(study: ExtensionStudy) -> Iterator[Reading]:
    """What doing nothing scores: the base in its own windows, and with longer positions but no training."""
    training, original = study.training, study.recipe.original_context
    base = dataclasses.replace(unextended_base(training.base), dtype=study.recipe.test_dtype)
    yield Reading(base, (original,))
    for method in INTERPOLATIONS if training.context > original else ():
        spec = study.recipe.spec("full", **{**dict(study.changes), "rope": method})
        key = {"base_sha256": base_hash(spec.base), "rope": method, "context": spec.context}
        name = untrained_name(method, spec.context / original)
        model = ModelUnderTest(name, None, key, partial(load_base, spec), study.recipe.test_dtype)
        yield Reading(model, study.contexts)


def trained(
    study: ExtensionStudy, *, runs: Path, progress: bool = True, used: list[Path] | None = None
) -> Iterator[Reading]:
    """The models of the study, missing ones trained on the way; their runs are added to `used`."""
    for spec in study.specs():
        run = train(spec, runs=runs, progress=progress)
        if used is not None:
            used.append(run.path)
        load, key = partial(load_trained, run, spec), {"run": run.path.name}
        model = ModelUnderTest(spec.pattern, spec.seed, key, load, study.recipe.test_dtype)
        yield Reading(model, study.contexts)
        if spec.pattern in study.own_attention:
            yield Reading(model, (spec.context,), spec.attention_pattern())


def each_model(study: ExtensionStudy, runs: Path, progress: bool, used: list[Path]) -> Iterator[Reading]:
    """Every model once."""
    for reading in [*baselines(study), *trained(study, runs=runs, progress=progress, used=used)]:
        if reading.attention == FULL:
            yield reading
