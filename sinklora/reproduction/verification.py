"""Committed numbers made again: a few cells drawn by chance, recomputed from nothing and compared.

What trains is trained again, in a folder of its own; nothing that was measured before is read back.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from sinklora.cache.full import Full
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.evaluate.through_cache import continuation_nll
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import load
from sinklora.records.checks import check_choice
from sinklora.records.row_files import parquet_frame
from sinklora.reproduction.cache.study import PERPLEXITY, CacheStudy, base_dtype, measure
from sinklora.reproduction.cache.text_study import passages_of
from sinklora.reproduction.extension.readings import FULL, Reading, chosen_texts, piece_losses
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.extension.study import ExtensionStudy, baselines, trained
from sinklora.reproduction.report.experiments import PROFILES, declared_parameters, load_experiments
from sinklora.train.sources import CorpusSpec, present_source
from sinklora.train.tokens import tokenize_corpus

# Nats a token: another processor adds in another order, bfloat16 rounds, and training makes the most of both.
READ, READ_IN_BFLOAT16, TRAINED = 0.001, 0.02, 0.02


@dataclass(frozen=True)
class Cell:
    """A committed number and the same made again, in nats a token; `reason` where it could not be made."""

    table: str
    what: str
    committed: float = float("nan")
    again: float = float("nan")
    tolerance: float = 0.0
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether both are the same within the tolerance; of what could not be made again nothing is said."""
        return bool(self.reason) or abs(self.committed - self.again) <= self.tolerance

    def told(self) -> str:
        """One line."""
        if self.reason:
            return f"  not made again: {self.table}, {self.what}: {self.reason}"
        numbers = f"{self.committed:.4f} {self.again:.4f} {self.tolerance:g}"
        return f"  {'agrees' if self.agrees else 'DIFFERS'}: {self.table}, {self.what}: {numbers}"


@dataclass(frozen=True)
class Draw:
    """What a check draws from: a profile's results and parameters, chance, and how many cells it makes.

    `runs`: an empty folder, where what is trained and measured on the way lies.
    """

    results: Path
    parameters: Mapping[str, Any]
    chance: np.random.Generator
    cells: int
    runs: Path

    def rows(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Some of the rows."""
        places = self.chance.choice(len(rows), size=min(self.cells, len(rows)), replace=False)
        return rows.iloc[np.sort(places)]

    def one(self, values: "pd.Series[Any]") -> Any:
        """One of the values that occur."""
        return self.chance.choice(sorted(values.unique()))


def verify(
    profile: str, *, cells: int, seed: int, runs: Path, only: str = "", repository: Path = Path()
) -> Iterator[Cell]:
    """Cells of a profile's committed results, one after the other; `only`: checks whose names start so.

    Raises ValueError for a profile or a check that is not there.
    """
    check_choice("profile", profile, PROFILES)
    chosen = {name: check for name, check in CHECKS.items() if name.startswith(only)}
    if not chosen:
        raise ValueError(f"only={only!r}: the checks are {', '.join(CHECKS)}")
    parameters = {}
    for experiment in load_experiments(repository / "notebooks" / "experiments.yaml"):
        declared = declared_parameters(repository / "notebooks" / f"{experiment.notebook}.ipynb")
        parameters[experiment.notebook] = {**declared, **experiment.parameters.get(profile, {})}
    for name, (notebook, file, check) in chosen.items():
        source = repository / "results" / profile / file
        if not source.is_file():
            yield Cell(name, file, reason="not committed yet")
            continue
        chance = np.random.default_rng([seed, *name.encode()])
        draw = Draw(source.parent.parent, parameters[notebook], chance, cells, runs)
        yield from check(draw, _read(source))


def _read(source: Path) -> pd.DataFrame:
    return parquet_frame(source) if source.suffix == ".parquet" else pd.read_csv(source)


def _untrained(draw: Draw, rows: pd.DataFrame) -> Iterator[Cell]:
    """Models that need no training, on pieces of Table 1."""
    yield from _losses(draw, rows[rows.seed.isna()], READ)


def _trained(draw: Draw, rows: pd.DataFrame) -> Iterator[Cell]:
    """A pattern with a seed, trained again."""
    names = draw.parameters["patterns"]
    yield from _losses(draw, rows[rows.seed.notna() & rows.method.isin(names)], TRAINED)


def _losses(draw: Draw, rows: pd.DataFrame, tolerance: float) -> Iterator[Cell]:
    rows = rows[(rows.attention == FULL) & (rows.test_set == "Table 1")]
    method = draw.one(rows.method)
    rows = rows[rows.method == method]
    context = int(draw.one(rows.context))
    rows = rows[rows.context == context]
    seeds = [int(seed) for seed in rows.seed.dropna().unique()]
    seed = int(draw.chance.choice(sorted(seeds))) if seeds else None
    drawn = draw.rows(rows if seed is None else rows[rows.seed == seed])
    recipe = read_recipe(draw.parameters["recipe"]).reduced(draw.parameters["pieces"])
    study = ExtensionStudy(recipe, (method if seeds else "full",), (seed or 0,), ("Table 1",), (context,))
    readings = baselines(study) if seed is None else trained(study, runs=draw.runs, progress=False)
    reading: Reading = next(r for r in readings if r.model.name == method)
    pieces = {piece.name: piece for piece in chosen_texts(recipe, ["Table 1"], draw.runs)["Table 1"].pieces}
    lost = [name for name in drawn.piece if name not in pieces]
    if lost:
        yield Cell("Table 1", method, reason=f"{lost[0]} is not among this environment's texts")
        return
    scores = piece_losses(recipe, reading, [pieces[name] for name in drawn.piece], context)
    said = method if seed is None else f"{method}, seed {seed}"
    for name, committed, again in zip(drawn.piece, drawn.nll, scores, strict=True):
        yield Cell("Table 1", f"{said}, {context} tokens, {name}", committed, again.nll, tolerance)


def _small_caches(draw: Draw, rows: pd.DataFrame) -> Iterator[Cell]:
    """A policy at a budget on the embedded base: mean nats of all documents."""
    parameters = draw.parameters
    corpus = CorpusSpec(
        parameters["source"],
        parameters["split"],
        parameters["min_characters"],
        total_characters=parameters["characters"],
    )
    study = CacheStudy(
        parameters["base"],
        corpus,
        prompt_tokens=parameters["prompt_tokens"],
        scored_tokens=parameters["scored_tokens"],
        documents=parameters["documents"],
        recall_tokens=parameters["recall_tokens"],
        trials=1,
        seeds=(0,),
    )
    [drawn] = replace(draw, cells=1).rows(rows[rows.measure == PERPLEXITY]).to_dict("records")
    policy = _policy(drawn["policy"], drawn["budget"])
    measured = measure(study, {drawn["policy"]: [policy]}, runs=draw.runs, progress=False)
    nats = measured[(measured.measure == PERPLEXITY) & (measured.policy == drawn["policy"])].value.mean()
    what = f"{drawn['policy']}, {drawn['budget']:.0%} of the prompt, {parameters['documents']} documents"
    yield Cell("Fig. 6", what, float(np.log(drawn["value"])), float(nats), READ)


def _real_caches(draw: Draw, rows: pd.DataFrame) -> Iterator[Cell]:
    """A policy at a budget on the real model: some passages."""
    parameters = draw.parameters
    source = present_source(parameters["real_source"])
    if source != parameters["real_source"]:
        yield Cell("Fig. 6, real", "passages", reason=f"{parameters['real_source']} is not on this machine")
        return
    corpus = CorpusSpec(
        source, parameters["real_split"], parameters["real_min_characters"], max_characters=2_000_000
    )
    base, prompt, scored = parameters["real_base"], parameters["real_prompt"], parameters["real_scored"]
    tokenized = tokenize_corpus(corpus, AutoTokenizer.from_pretrained(model_path(base)))
    passages = passages_of(
        tokenized,
        tokens=prompt + scored,
        passages=parameters["real_passages"],
        per_document=parameters["real_per_document"],
    )
    [cell] = replace(draw, cells=1).rows(rows[rows.measure == PERPLEXITY]).to_dict("records")
    of_policy = rows[(rows.policy == cell["policy"]) & (rows.budget == cell["budget"])]
    drawn = draw.rows(of_policy[of_policy.measure == PERPLEXITY])
    model = load(base, dtype=base_dtype(base), device=default_device()).model
    ids = [passages[int(item)].ids for item in drawn["item"]]
    make = partial(BudgetCache, model, _policy(cell["policy"], cell["budget"]))
    losses = continuation_nll(model, ids, make, prompt_tokens=prompt, scored_tokens=scored, progress=False)
    for item, committed, again in zip(drawn["item"], drawn.value, losses.mean(1), strict=True):
        what = f"{cell['policy']}, {cell['budget']:.0%} of the prompt, passage {item}"
        yield Cell("Fig. 6, real", what, float(committed), float(again), READ_IN_BFLOAT16)


def _policy(name: str, budget: float) -> CachePolicy:
    return Full() if name == "full" else make_policy(name, budget)


Check = Callable[[Draw, pd.DataFrame], Iterator[Cell]]

CHECKS: dict[str, tuple[str, str, Check]] = {
    "untrained": ("02_perplexity", "rows/perplexity_measurements.parquet", _untrained),
    "trained": ("02_perplexity", "rows/perplexity_measurements.parquet", _trained),
    "cache": ("06_kv_cache", "tables/fig6_values.csv", _small_caches),
    "real-cache": ("06_kv_cache", "tables/fig6_real_items.csv", _real_caches),
}
