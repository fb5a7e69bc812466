"""Context extension compared over attention patterns: train each with each seed, test all with full
attention (Tables 1, 2).

Training runs and measurements are run directories: a stopped study goes on where it was, a finished one is
read back.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from transformers import AutoTokenizer

from sinklora.data import CorpusSpec, TokenizedCorpus, corpus_record, tokenize_corpus
from sinklora.evaluate.perplexity import perplexity
from sinklora.files import write_json
from sinklora.runs import RunDirectory
from sinklora.train import TrainSpec, base_hash, load_base, load_trained, train

UNTRAINED = "not fine-tuned"
KEYS = ["method", "seed", "test_set", "context"]


@dataclass(frozen=True)
class ExtensionStudy:
    """What is compared: ``training`` gives all but pattern and seed; ``contexts`` and ``stride`` in tokens.

    Of each test set the first ``documents`` documents of at least ``document_tokens`` tokens are taken,
    cut to that length, so that every context length predicts the same tokens.
    """

    training: TrainSpec
    patterns: tuple[str, ...]
    seeds: tuple[int, ...]
    test_sets: dict[str, CorpusSpec]
    contexts: tuple[int, ...]
    stride: int
    documents: int
    document_tokens: int
    batch_size: int = 4

    def __post_init__(self) -> None:
        if "full" not in self.patterns:
            raise ValueError(f"patterns={self.patterns}: 'full' is needed, the others are compared with it")
        if not self.seeds:
            raise ValueError("seeds=(): expected at least one seed")
        if self.document_tokens < max(self.contexts):
            raise ValueError(
                f"document_tokens={self.document_tokens}: expected at least the longest context, "
                f"{max(self.contexts)}"
            )

    def specs(self) -> Iterator[TrainSpec]:
        """The training runs of the study, seed by seed."""
        for seed in self.seeds:
            for pattern in self.patterns:
                yield dataclasses.replace(self.training, pattern=pattern, seed=seed)


def measure(
    study: ExtensionStudy, *, runs: Path, cache: Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """Train what is missing and test everything: one row per method, seed, test set and context.

    Columns: KEYS, ``perplexity``, ``tokens`` (predicted), ``documents``, ``attention`` (at test time). The
    base without fine-tuning (interpolated positions) has no seed. ``rows.attrs["data"]`` records the test
    sets.
    """
    tokenizer = AutoTokenizer.from_pretrained(study.training.base)
    sets = {name: _test_documents(study, name, tokenizer, cache) for name in study.test_sets}
    base_key = {
        "base": study.training.base,
        "base_sha256": base_hash(study.training.base),
        "rope": study.training.rope,
    }
    frames = [
        _measured(study, sets, UNTRAINED, None, base_key, partial(load_base, study.training), runs, progress)
    ]
    for spec in study.specs():
        run = train(spec, runs=runs, cache=cache, progress=progress)
        key = {"run": run.path.name}
        load = partial(load_trained, run, spec)
        frames.append(_measured(study, sets, spec.pattern, spec.seed, key, load, runs, progress))
    rows = pd.concat(frames, ignore_index=True)
    rows.attrs["data"] = {
        name: corpus_record(study.test_sets[name], corpus) for name, (_, corpus) in sets.items()
    }
    return rows


def _test_documents(
    study: ExtensionStudy, name: str, tokenizer: Any, cache: Path | None
) -> tuple[list[np.ndarray], TokenizedCorpus]:
    corpus = tokenize_corpus(study.test_sets[name], tokenizer, cache=cache)
    long = [d[: study.document_tokens] for d in corpus.documents() if len(d) >= study.document_tokens]
    if len(long) < study.documents:
        raise ValueError(
            f"test set {name!r}: {len(long)} documents of {study.document_tokens} tokens, "
            f"{study.documents} wanted; "
            "take more of the corpus (total_characters) or shorter documents"
        )
    return long[: study.documents], corpus


def _measured(
    study: ExtensionStudy,
    sets: dict[str, tuple[list[np.ndarray], TokenizedCorpus]],
    method: str,
    seed: int | None,
    key: dict[str, Any],
    load: Callable[[], nn.Module],
    runs: Path,
    progress: bool,
) -> pd.DataFrame:
    """The rows of one model, read back if they were measured before."""
    data = {name: corpus_record(study.test_sets[name], corpus) for name, (_, corpus) in sets.items()}
    asked = {name: getattr(study, name) for name in ("contexts", "stride", "documents", "document_tokens")}
    run = RunDirectory(runs, {"model": key, "data": data, **asked}, prefix="perplexity")

    def work(folder: Path) -> list[str]:
        model = load()
        rows = [
            _row(study, method, seed, name, context, model, documents, progress)
            for name, (documents, _) in sets.items()
            for context in study.contexts
        ]
        write_json(folder / "rows.json", rows)
        return ["rows.json"]

    return pd.DataFrame(json.loads((run.reuse_or(work) / "rows.json").read_text()))


def _row(
    study: ExtensionStudy,
    method: str,
    seed: int | None,
    test_set: str,
    context: int,
    model: nn.Module,
    documents: Sequence[np.ndarray],
    progress: bool,
) -> dict[str, Any]:
    result = perplexity(
        model, documents, context=context, stride=study.stride, batch_size=study.batch_size, progress=progress
    )
    return {
        "method": method,
        "seed": seed,
        "test_set": test_set,
        "context": context,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "documents": result.documents,
        "attention": result.attention,
    }


def comparisons(rows: pd.DataFrame, original: int, target: int) -> pd.DataFrame:
    """What each fine-tuned model gains: one row per method, seed and test set.

    ``gap_to_full`` = pm - pf at ``target``, same seed; ``gain_from_context`` = perplexity at ``original``
    minus at
    ``target``, same model and tokens; ``share`` = (p0 - pm) / (p0 - pf), p0 without fine-tuning (the
    abstract's 39 % and 92 %).
    """
    numbered = rows.assign(seed=rows.seed.fillna(-1).astype(int))  # a missing seed would not pivot
    wide = numbered.pivot(index=["test_set", "method", "seed"], columns="context", values="perplexity")
    wide = wide.reset_index()
    untrained = wide[wide.method == UNTRAINED].set_index("test_set")[target]
    full = wide[wide.method == "full"].set_index(["test_set", "seed"])[target]
    tuned = wide[wide.method != UNTRAINED]
    pf = full.loc[pd.MultiIndex.from_frame(tuned[["test_set", "seed"]])].to_numpy()
    p0 = untrained.loc[tuned.test_set].to_numpy()
    return pd.DataFrame(
        {
            "test_set": tuned.test_set.to_numpy(),
            "method": tuned.method.to_numpy(),
            "seed": tuned.seed.astype(int).to_numpy(),
            "gap_to_full": tuned[target].to_numpy() - pf,
            "gain_from_context": (tuned[original] - tuned[target]).to_numpy(),
            "share": (p0 - tuned[target].to_numpy()) / (p0 - pf),
        }
    )


def spread(values: "pd.Series[float]", digits: int = 2) -> str:
    """Mean ± standard deviation over seeds; the value alone where there is one."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def table(
    rows: pd.DataFrame, test_set: str, methods: Sequence[str], original: int, target: int
) -> pd.DataFrame:
    """Perplexity by context length and the three comparisons, mean ± standard deviation over seeds."""
    chosen = rows[rows.test_set == test_set]
    compared = comparisons(chosen, original, target)
    lines = []
    for method in (UNTRAINED, *methods):
        mine = chosen[chosen.method == method]
        line = {"trained with": method}
        line |= {str(c): spread(mine[mine.context == c].perplexity) for c in sorted(chosen.context.unique())}
        own = compared[compared.method == method]
        if len(own):
            line |= {
                "gap to full": spread(own.gap_to_full),
                "gain from context": spread(own.gain_from_context),
                "share of improvement (%)": spread(100 * own.share, 1),
            }
        lines.append(line)
    return pd.DataFrame(lines)


def verdict(rows: pd.DataFrame, test_set: str, original: int, target: int) -> str:
    """Whether SF-Attn beats S²-Attn and how the shares compare with the abstract's 92 % and 39 %, from the
    numbers alone.
    """
    compared = comparisons(rows[rows.test_set == test_set], original, target)
    gaps = compared.pivot(index="seed", columns="method", values="gap_to_full")
    share = 100 * compared.groupby("method").share.mean()
    rivals = {"s2_wrapped": "S²-Attn as in Algorithm 1 (with the leak)", "s2": "S²-Attn without the leak"}
    sentences = [
        _duel(gaps.sf, gaps[name], label) for name, label in rivals.items() if {"sf", name} <= set(gaps)
    ]
    shares = ", ".join(f"{name} {share[name]:.1f} %" for name in ("sf", "s2", "s2_wrapped") if name in share)
    return " ".join(
        [
            *sentences,
            f"Share of full attention's improvement: {shares} (abstract: SF-Attn 92 %, S²-Attn 39 %).",
        ]
    )


def _duel(mine: "pd.Series[float]", other: "pd.Series[float]", label: str) -> str:
    wins, seeds = int((mine < other).sum()), len(mine)
    held = "Held" if wins == seeds else "Did not hold" if wins == 0 else "Not decided"
    lead = spread(other - mine, 3)
    return f"{held}: SF-Attn beats {label} in {wins} of {seeds} seeds, by {lead} in perplexity."
