"""Context extension compared: every pattern with every seed, and what needs no training, on the same texts.

Training runs and measurements are run directories: a stopped study goes on where it was, a finished one is
read back. One row is one piece of text read by one model; `comparison` says what is made of them.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from sinklora.evaluate.perplexity import DocumentScore, measure_perplexity
from sinklora.hf.device import default_device
from sinklora.hf.models import use_pattern
from sinklora.hf.rope_scaling import INTERPOLATIONS
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, Distinct, check_fields
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.texts import ChosenTexts, Piece, texts_of
from sinklora.reproduction.model_under_test import ModelUnderTest, unextended_base
from sinklora.reproduction.names import untrained_name
from sinklora.train.run import load_base, load_trained, train
from sinklora.train.spec import TrainSpec, base_hash

FULL, OWN = (
    "full",
    "own",
)  # attention at test time: of everything, or the pattern that a model was trained with


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
    """The study of Tables 1 and 2 of a notebook's parameters: those with the names of fields."""
    return ExtensionStudy(
        recipe,
        tuple(parameters["patterns"]),
        tuple(parameters["seeds"]),
        ("Table 1", "Table 2"),
        tuple(parameters["test_contexts"]),
        tuple(parameters["own_attention"]),
    )


@dataclass(frozen=True)
class Reading:
    """A model, the contexts in which it is read, and with which attention."""

    model: ModelUnderTest
    contexts: tuple[int, ...]
    attention: str = FULL
    pattern: str = ""


def measure(study: ExtensionStudy, *, runs: Path, progress: bool = True) -> pd.DataFrame:
    """Train what is missing and read everything: one row per model, test set, context and piece of text.

    Columns: `method`, `seed` (missing for what needs no training), `attention` (at test time), `test_set`,
    `context`, `group`, `piece`, `nll` (mean nats a token), `tokens` (predicted). `rows.attrs["data"]` records
    the test sets, `rows.attrs["runs"]` the runs that they were made of. Methods that need no training: the
    base as it is (at its own context alone), and with each way to extend positions.
    """
    used: list[Path] = []
    readings = [*baselines(study), *trained(study, runs=runs, progress=progress, used=used)]
    return read(study, readings, runs=runs, progress=progress, used=used)


def read(
    study: ExtensionStudy,
    readings: Iterable[Reading],
    *,
    runs: Path,
    progress: bool = True,
    used: list[Path] | None = None,
) -> pd.DataFrame:
    """The rows of `measure` for some readings; runs that are behind them already are in `used`."""
    texts = chosen_texts(study.recipe, study.test_sets, runs)
    used = [] if used is None else used
    frames = [_read(study, texts, reading, runs, progress, used) for reading in readings]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.astype({"seed": "Int64"})
    frame.attrs["runs"] = run_records(used)
    frame.attrs["data"] = {name: chosen.record() for name, chosen in texts.items()}
    return frame


def attention_cost(spec: TrainSpec) -> float:
    """Query-key pairs over causal pairs, mean over the steps of a training: 1 is full attention."""
    heads = AutoConfig.from_pretrained(model_path(spec.base)).num_attention_heads
    used = Counter(spec.attention_pattern(step) for step in range(spec.steps))
    return sum(pattern.density(heads, spec.context) * count for pattern, count in used.items()) / spec.steps


def training_curves(study: ExtensionStudy, *, runs: Path) -> pd.DataFrame:
    """The training loss of every step of every run: columns method, seed, step, loss."""
    frames = []
    for spec in study.specs():
        curve = pd.read_csv(train(spec, runs=runs, progress=False).path / "loss.csv")
        frames.append(curve[["step", "loss"]].assign(method=spec.pattern, seed=spec.seed))
    return pd.concat(frames, ignore_index=True)


def chosen_texts(recipe: Recipe, names: Sequence[str], runs: Path) -> dict[str, ChosenTexts]:
    """Texts of a recipe by name."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(recipe.training.base))
    return texts_of({name: recipe.texts[name] for name in names}, tokenizer, recipe.seen, runs=runs)


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
            yield Reading(model, (spec.context,), OWN, spec.pattern)


def _read(
    study: ExtensionStudy,
    texts: dict[str, ChosenTexts],
    reading: Reading,
    runs: Path,
    progress: bool,
    used: list[Path],
) -> pd.DataFrame:
    """The rows of one reading, read back if they were measured before."""
    loaded: list[nn.Module] = []
    frames = []
    for name, chosen in texts.items():
        for context in reading.contexts:
            spec = {
                "model": {**reading.model.identity, "attention": reading.attention},
                "texts": chosen.sha256,
                "context": context,
                "stride": study.recipe.stride_of(context),
            }
            work = partial(_losses, study, reading, loaded, chosen, context, progress)
            losses = remember(spec, work, runs=runs, prefix="losses", used=used)
            rows = pd.DataFrame(losses, columns=["group", "piece", "nll", "tokens"])
            frames.append(rows.assign(test_set=name, context=context))
    found = pd.concat(frames, ignore_index=True)
    return found.assign(method=reading.model.name, seed=reading.model.seed, attention=reading.attention)


def _losses(
    study: ExtensionStudy,
    reading: Reading,
    loaded: list[nn.Module],
    chosen: ChosenTexts,
    context: int,
    progress: bool,
) -> list[list[Any]]:
    if not loaded:
        loaded.append(_ready(study, reading))
    scores = _scores(study, loaded[0], chosen.pieces, context, progress)
    return [
        [piece.group, piece.name, score.nll, score.tokens]
        for piece, score in zip(chosen.pieces, scores, strict=True)
    ]


def piece_losses(
    study: ExtensionStudy, reading: Reading, pieces: Sequence[Piece], context: int
) -> Sequence[DocumentScore]:
    """The losses of some pieces, read in windows of `context` tokens as the study reads them all."""
    return _scores(study, _ready(study, reading), pieces, context, progress=False)


def _ready(study: ExtensionStudy, reading: Reading) -> nn.Module:
    model: nn.Module = reading.model.ready()
    if reading.attention == OWN:
        use_pattern(model, _pattern_of(study, reading.pattern), evaluate_with_pattern=True)
    return model


def _scores(
    study: ExtensionStudy, model: nn.Module, pieces: Sequence[Piece], context: int, progress: bool
) -> Sequence[DocumentScore]:
    return measure_perplexity(
        model,
        [piece.ids for piece in pieces],
        context=context,
        stride=study.recipe.stride_of(context),
        batch_size=study.recipe.test_batch,
        device=default_device(),
        progress=progress,
    ).per_document


def _pattern_of(study: ExtensionStudy, name: str) -> Any:
    return study.recipe.spec(name, **dict(study.changes)).attention_pattern()


def each_model(study: ExtensionStudy, runs: Path, progress: bool, used: list[Path]) -> Iterator[Reading]:
    """Every model once."""
    for reading in [*baselines(study), *trained(study, runs=runs, progress=progress, used=used)]:
        if reading.attention == FULL:
            yield reading
