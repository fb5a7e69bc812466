"""Models read by windows: which model, in which contexts, with which attention, on which texts.

Each measurement is a run directory, read back where it was made before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from transformers import AutoTokenizer

from sinklora.attention.pattern import Pattern
from sinklora.evaluate.perplexity import DocumentScore, measure_perplexity
from sinklora.hf.device import default_device
from sinklora.hf.models import use_pattern
from sinklora.pretrained.fetch import model_path
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.texts import ChosenTexts, Piece, texts_of
from sinklora.reproduction.model_under_test import ModelUnderTest

FULL, OWN = "full", "own"  # attention at test time: of everything, or what a model was trained with


@dataclass(frozen=True)
class Reading:
    """A model, the contexts in which it is read, and the pattern it attends with; None: full attention."""

    model: ModelUnderTest
    contexts: tuple[int, ...]
    pattern: Pattern | None = None

    @property
    def attention(self) -> str:
        """What the pattern is called in tables and keys."""
        return FULL if self.pattern is None else OWN

    def ready(self) -> nn.Module:
        """The model, loaded, with its attention."""
        model: nn.Module = self.model.ready()
        if self.pattern is not None:
            use_pattern(model, self.pattern, evaluate_with_pattern=True)
        return model


def chosen_texts(recipe: Recipe, names: Sequence[str], runs: Path) -> dict[str, ChosenTexts]:
    """Texts of a recipe by name."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(recipe.training.base))
    return texts_of({name: recipe.texts[name] for name in names}, tokenizer, recipe.seen, runs=runs)


def read(
    recipe: Recipe,
    test_sets: Sequence[str],
    readings: Iterable[Reading],
    *,
    runs: Path,
    progress: bool = True,
    used: list[Path] | None = None,
) -> pd.DataFrame:
    """One row per model, test set (name of the recipe's texts), context and piece of text.

    Columns: `method`, `seed` (missing for what needs no training), `attention` (FULL or OWN), `test_set`,
    `context`, `group`, `piece`, `nll` (mean nats a token), `tokens` (predicted). `rows.attrs["data"]` records
    the texts, `rows.attrs["runs"]` what the rows were made of; `used` has the runs behind the models.
    """
    texts = chosen_texts(recipe, test_sets, runs)
    used = [] if used is None else used
    frames = [_rows(recipe, texts, reading, runs, progress, used) for reading in readings]
    frame = pd.concat(frames, ignore_index=True).astype({"seed": "Int64"})
    frame.attrs["runs"] = run_records(used)
    frame.attrs["data"] = {name: chosen.record() for name, chosen in texts.items()}
    return frame


def made_of(frames: Iterable[pd.DataFrame]) -> dict[str, Any]:
    """What a result made of several frames says of it: the `data` and the `runs` of all their `attrs`, each
    once.
    """
    attrs = [frame.attrs for frame in frames]
    data = {name: record for own in attrs for name, record in own.get("data", {}).items()}
    runs = {record["run"]: record for own in attrs for record in own["runs"]}
    return {"data": data, "runs": list(runs.values())}


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all frames, with what they were made of, which a concatenation forgets where it differs."""
    rows = pd.concat(frames, ignore_index=True)
    rows.attrs |= made_of(frames)
    return rows


def by_kind(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of several kinds of positions, `joined`, told apart by the column `positions`."""
    return joined([part.assign(positions=kind) for kind, part in parts.items()])


def _rows(
    recipe: Recipe,
    texts: dict[str, ChosenTexts],
    reading: Reading,
    runs: Path,
    progress: bool,
    used: list[Path],
) -> pd.DataFrame:
    """The rows of one reading; its model is loaded where some are not remembered."""
    loaded: list[nn.Module] = []
    frames = []
    for name, chosen in texts.items():
        for context in reading.contexts:
            spec = {
                "model": {**reading.model.identity, "attention": reading.attention},
                "texts": chosen.sha256,
                "context": context,
                "stride": recipe.stride_of(context),
            }
            work = partial(_losses, recipe, reading, loaded, chosen, context, progress)
            losses = remember(spec, work, runs=runs, prefix="losses", used=used)
            rows = pd.DataFrame(losses, columns=["group", "piece", "nll", "tokens"])
            frames.append(rows.assign(test_set=name, context=context))
    all_rows = pd.concat(frames, ignore_index=True)
    return all_rows.assign(method=reading.model.name, seed=reading.model.seed, attention=reading.attention)


def _losses(
    recipe: Recipe,
    reading: Reading,
    loaded: list[nn.Module],
    chosen: ChosenTexts,
    context: int,
    progress: bool,
) -> list[list[Any]]:
    if not loaded:
        loaded.append(reading.ready())
    scores = _scores(recipe, loaded[0], chosen.pieces, context, progress)
    return [
        [piece.group, piece.name, score.nll, score.tokens]
        for piece, score in zip(chosen.pieces, scores, strict=True)
    ]


def piece_losses(
    recipe: Recipe, reading: Reading, pieces: Sequence[Piece], context: int
) -> Sequence[DocumentScore]:
    """The losses of some pieces, read in windows of `context` tokens as `read` reads them all."""
    return _scores(recipe, reading.ready(), pieces, context, progress=False)


def _scores(
    recipe: Recipe, model: nn.Module, pieces: Sequence[Piece], context: int, progress: bool
) -> Sequence[DocumentScore]:
    return measure_perplexity(
        model,
        [piece.ids for piece in pieces],
        context=context,
        stride=recipe.stride_of(context),
        batch_size=recipe.test_batch,
        device=default_device(),
        progress=progress,
    ).per_document
