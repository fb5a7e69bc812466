"""What training changes inside: loss by position, and how much attention the first tokens draw, by layer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sinklora.evaluate.paired_effects import difference
from sinklora.evaluate.position_losses import losses_by_position
from sinklora.records.checks import check_counts
from sinklora.records.runs import remember, run_records
from sinklora.records.tables import Column, Estimate, Spread, Table
from sinklora.reproduction.extension.readings import Reading, chosen_texts
from sinklora.reproduction.extension.study import ExtensionStudy, each_model
from sinklora.reproduction.extension.tables import METHOD, estimate_fields
from sinklora.reproduction.extension.texts import ChosenTexts
from sinklora.reproduction.names import BASE
from sinklora.reproduction.patterns.attention_study import AFTER, SINKS
from sinklora.reproduction.patterns.attention_weights import visit_attention
from sinklora.reproduction.report.summaries import mean_and_sd


def by_position(
    study: ExtensionStudy, test_set: str, bucket: int, *, runs: Path, progress: bool = True
) -> pd.DataFrame:
    """Loss by position at the trained context, one row a model, piece and bucket of positions.

    Columns: `method`, `seed`, `group`, `piece`, `position` (the last of its bucket), `nll`. Every model reads
    each piece at once with full attention, the base as it is beyond its own context too.
    """
    chosen = chosen_texts(study.recipe, [test_set], runs)[test_set]
    frames, used = [], list[Path]()
    for reading in each_model(study, runs, progress, used):
        key = {"model": reading.model.identity, "texts": chosen.sha256, "bucket": bucket}
        work = partial(_positions, reading, chosen, study.training.context, bucket, progress)
        rows = remember(key, work, runs=runs, prefix="positions", used=used)
        frames.append(_named(pd.DataFrame(rows, columns=["group", "piece", "position", "nll"]), reading))
    return _together(frames, {test_set: chosen.record()}, used)


def _together(frames: list[pd.DataFrame], data: dict[str, Any], used: list[Path]) -> pd.DataFrame:
    frame = pd.concat(frames, ignore_index=True).astype({"seed": "Int64"})
    frame.attrs |= {"data": data, "runs": run_records(used)}
    return frame


def _positions(
    reading: Reading, chosen: ChosenTexts, context: int, bucket: int, progress: bool
) -> list[list[Any]]:
    bucket_losses = losses_by_position(
        reading.model.ready(),
        [piece.ids for piece in chosen.pieces],
        context=context,
        bucket=bucket,
        progress=progress,
    )
    return [
        [piece.group, piece.name, (place + 1) * bucket, nll]
        for piece, losses in zip(chosen.pieces, bucket_losses.tolist(), strict=True)
        for place, nll in enumerate(losses)
    ]


def sink_mass(
    study: ExtensionStudy, test_set: str, tokens: int, *, runs: Path, progress: bool = True
) -> pd.DataFrame:
    """The share of attention that the first four tokens draw, one row a model, piece and layer.

    Columns: `method`, `seed`, `group`, `piece`, `layer`, `share` (mean over heads and over queries from token
    64 on), on the first `tokens` tokens of each piece; even attention gives `uniform_mass(tokens, SINKS)`.
    Raises ValueError for no more than those 64 tokens.
    """
    check_counts(AFTER + 1, tokens=tokens)
    chosen = chosen_texts(study.recipe, [test_set], runs)[test_set]
    frames, used = [], list[Path]()
    for reading in each_model(study, runs, progress, used):
        key = {"model": reading.model.identity, "texts": chosen.sha256, "sinks": SINKS, "tokens": tokens}
        work = partial(_shares, reading, chosen, tokens)
        rows = remember(key, work, runs=runs, prefix="sink-mass", used=used)
        frames.append(_named(pd.DataFrame(rows, columns=["group", "piece", "layer", "share"]), reading))
    return _together(frames, {test_set: chosen.record()}, used)


def sink_table(rows: pd.DataFrame, methods: Sequence[str]) -> Table:
    """The share of attention on the first four tokens (%), mean over layers, and its points above the base's.

    `rows` as of `sink_mass`, those that need no training first; with 95 % intervals over seeds and documents.
    """
    shares = rows.groupby(["method", "seed", "group"], dropna=False).share.mean().unstack("group") * 100
    of_base = shares.loc[BASE].to_numpy()
    lines = []
    untrained = rows[rows.seed.isna()].method.unique()
    for method in dict.fromkeys([BASE, *untrained, *methods]):
        here = shares.loc[method].to_numpy()
        line = {METHOD: method} | mean_and_sd("first 4 tokens (%)", pd.Series(here.mean(1)))
        if method != BASE:
            line |= estimate_fields("points above the base", difference(here, of_base))
        lines.append(line)
    shown: list[Column] = [Column(METHOD), Spread("first 4 tokens (%)", 1), Estimate("points above the base")]
    return Table(pd.DataFrame(lines), shown)


def _shares(reading: Reading, chosen: ChosenTexts, tokens: int) -> list[list[Any]]:
    model: Any = reading.model.ready()
    rows: list[list[Any]] = []

    def visit(group: str, name: str, layer: int, weights: torch.Tensor) -> None:
        rows.append([group, name, layer, float(weights[:, AFTER:, :SINKS].sum(-1).mean())])

    for piece in chosen.pieces:
        visit_attention(model, piece.ids[:tokens], partial(visit, piece.group, piece.name))
    return rows


def _named(rows: pd.DataFrame, reading: Reading) -> pd.DataFrame:
    return rows.assign(method=reading.model.name, seed=reading.model.seed)
