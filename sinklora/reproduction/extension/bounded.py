"""Extended models read through bounded caches: training with a pattern and inference with H2O in one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.paired_effects import Effect, Values, difference
from sinklora.evaluate.through_cache import continuation_nll
from sinklora.hf.budget_cache import BudgetCache
from sinklora.records.checks import check_holds
from sinklora.records.runs import remember, run_records
from sinklora.records.tables import Column, Spread, Table
from sinklora.reproduction.extension.comparison import NATS, NOT_VALID, by_seed_and_document
from sinklora.reproduction.extension.readings import Reading, chosen_texts
from sinklora.reproduction.extension.study import ExtensionStudy, each_model
from sinklora.reproduction.extension.tables import METHOD, Nats, estimate_fields
from sinklora.reproduction.extension.texts import ChosenTexts
from sinklora.reproduction.names import BASE
from sinklora.reproduction.report.claims import Claim, family
from sinklora.reproduction.report.summaries import mean_and_sd

FULL_CACHE = "full cache"

ITEM = "Extended models under H2O (ours)"


def bounded_study_of(study: ExtensionStudy, parameters: Mapping[str, Any]) -> ExtensionStudy:
    """The models that a notebook's parameters read through bounded caches, trained as those of its study.

    Raises ValueError for models or a prompt of which nothing could be said once all is trained.
    """
    chosen = tuple(parameters["bounded_patterns"])
    check_holds("bounded_patterns", chosen, ["full", "sf"], "what a cache costs the two is compared")
    _check_prompt("bounded_prompt", parameters["bounded_prompt"], study)
    return replace(study, patterns=chosen, seeds=tuple(parameters["bounded_seeds"]), own_attention=())


def _check_prompt(name: str, prompt: int, study: ExtensionStudy) -> None:
    if not 0 < prompt < study.training.context:
        raise ValueError(f"{name}={prompt}: expected less than the {study.training.context} tokens trained")


def through_caches(
    study: ExtensionStudy,
    test_set: str,
    caches: Mapping[str, CachePolicy],
    prompt: int,
    *,
    runs: Path,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss of what follows the first `prompt` tokens of each piece: one row a model, cache and piece.

    Columns: `method`, `seed`, `cache`, `group`, `piece`, `nll` (mean nats a token). The base as it is, whose
    positions end before, is left out. Raises ValueError for a prompt that leaves nothing to predict.
    """
    _check_prompt("prompt", prompt, study)
    chosen = chosen_texts(study.recipe, [test_set], runs)[test_set]
    frames, used = [], list[Path]()
    for reading in each_model(study, runs, progress, used):
        if reading.model.name == BASE:
            continue
        loaded: list[Any] = []
        for name, policy in caches.items():
            key = {
                "model": reading.model.identity,
                "texts": chosen.sha256,
                "context": study.training.context,
                "prompt": prompt,
                "policy": policy_key(policy),
            }
            work = partial(_losses, study, reading, loaded, chosen, policy, prompt, progress)
            rows = remember(key, work, runs=runs, prefix="bounded", used=used)
            piece_losses = pd.DataFrame(rows, columns=["group", "piece", "nll"])
            frames.append(piece_losses.assign(method=reading.model.name, seed=reading.model.seed, cache=name))
    frame = pd.concat(frames, ignore_index=True).astype({"seed": "Int64"})
    frame.attrs |= {"data": {test_set: chosen.record()}, "runs": run_records(used)}
    return frame


def _losses(
    study: ExtensionStudy,
    reading: Reading,
    loaded: list[Any],
    chosen: ChosenTexts,
    policy: CachePolicy,
    prompt: int,
    progress: bool,
) -> list[list[Any]]:
    if not loaded:
        loaded.append(reading.model.ready())
    context = study.training.context
    nats = continuation_nll(
        loaded[0],
        [piece.ids[:context] for piece in chosen.pieces],
        partial(BudgetCache, loaded[0], policy),
        prompt_tokens=prompt,
        scored_tokens=context - prompt,
        batch_size=study.recipe.test_batch,
        progress=progress,
    ).mean(1)
    return [[piece.group, piece.name, float(nll)] for piece, nll in zip(chosen.pieces, nats, strict=True)]


def losses_of(rows: pd.DataFrame, method: str, cache: str) -> Values:
    """Nats a token, [seeds, documents]."""
    of_both = rows[(rows.method == method) & (rows.cache == cache)]
    if of_both.empty:
        raise ValueError(f"method={method!r}, cache={cache!r}: not measured")
    return by_seed_and_document(of_both).to_numpy(dtype=float)


def added(rows: pd.DataFrame, method: str, cache: str) -> Effect:
    """Nats that a cache adds to the full one's."""
    return difference(losses_of(rows, method, cache), losses_of(rows, method, FULL_CACHE))


def bounded_table(rows: pd.DataFrame, methods: Sequence[str]) -> Table:
    """One line a model: perplexity with the full cache, and the nats that each other one adds."""
    caches = [cache for cache in rows.cache.unique() if cache != FULL_CACHE]
    lines = []
    for method in methods:
        full = losses_of(rows, method, FULL_CACHE)
        line: dict[str, Any] = {METHOD: method}
        line |= mean_and_sd("perplexity, full cache", pd.Series(np.exp(full.mean(1))))
        for cache in caches:
            line |= estimate_fields(_adds(cache), added(rows, method, cache))
        lines.append(line)
    columns: list[Column] = [Column(METHOD), Spread("perplexity, full cache")]
    return Table(pd.DataFrame(lines), [*columns, *(Nats(_adds(cache)) for cache in caches)])


def _adds(cache: str) -> str:
    return f"nats added by {cache}"


def bounded_claims(
    rows: pd.DataFrame, start: str, cache: str, others: Sequence[str], *, valid: bool, model: str
) -> list[Claim]:
    """What training with SF-Attn is worth through a bounded cache; one correction for all."""
    blank = Claim(ITEM, "", "not decided", unit=NATS, table="extended_caches", model=model, restated=True)
    blank = blank if valid else replace(blank, reason=NOT_VALID)
    sf = losses_of(rows, "sf", cache)
    untrained, full = losses_of(rows, start, cache), losses_of(rows, "full", cache)
    cost = sf - losses_of(rows, "sf", FULL_CACHE)
    cost_of_full = full - losses_of(rows, "full", FULL_CACHE)
    cost_of_none = untrained - losses_of(rows, start, FULL_CACHE)
    pairs = {  # a model that is worse without a cache has less to lose by one: what is left is compared too
        f"through {cache}, SF-Attn's model is better than no training ({start})": (untrained, sf),
        f"through {cache}, full attention's model is better than SF-Attn's": (sf, full),
        f"{cache} costs SF-Attn's model less than full attention's": (cost_of_full, cost),
        f"{cache} costs SF-Attn's model less than the untrained one ({start})": (cost_of_none, cost),
    }
    for other in others:
        sentence = f"SF-Attn's model is better through {cache} than through {other}"
        pairs[sentence] = (losses_of(rows, "sf", other), sf)
    effects = {replace(blank, sentence=sentence): difference(*pair) for sentence, pair in pairs.items()}
    return family(effects)
