"""Where attention goes on real text: to the first tokens, and to heavy hitters, by passage and layer.

Each passage is a run directory of its own: a stopped study goes on where it was.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sinklora.evaluate.passages import cut_passages
from sinklora.hf.device import default_device
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, check_counts, check_fields
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.names import model_title
from sinklora.reproduction.patterns.attention_weights import visit_attention
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import base_hash
from sinklora.train.tokens import corpus_record, tokenize_corpus

SINKS = 4  # the first tokens that SF-Attn shows to all

AFTER = 64  # earlier queries see little else than the first tokens

KEY_SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the keys, most attended first

ALL, ASIDE = "all keys", "first tokens aside"


@dataclass(frozen=True)
class AttentionStudy:
    """Which model is looked at, on how many passages of which text (see `cut_passages`)."""

    base: str
    corpus: CorpusSpec
    passage_tokens: Count = 512
    passages: Count = 64

    def __post_init__(self) -> None:
        check_fields(self)
        check_counts(AFTER + 1, passage_tokens=self.passage_tokens)

    @property
    def title(self) -> str:
        """What tables call the model."""
        return model_title(self.base)


def measure_attention(
    study: AttentionStudy, *, runs: Path = Path("runs"), cache: Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """One row per passage and layer; all numbers are shares of attention, in float32 on every machine.

    Columns: `model`, `document` (name), `start` (token), `tokens`, `layer`, `first 1`; `first 4, head h` for
    each head; and `kind, share` for each kind of keys and each of `KEY_SHARES`: what so large a share of
    these keys, the most attended ones, receives, mean over heads. `rows.attrs` record the text
    (`data`) and the `runs`.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(study.base))
    corpus = tokenize_corpus(study.corpus, tokenizer, cache=cache, progress=progress)
    passages = cut_passages(corpus.documents(), study.passage_tokens, study.passages)
    loaded: list[PreTrainedModel] = []  # when something is missing
    used: list[Path] = []
    rows: list[dict[str, Any]] = []
    for passage in tqdm(passages, desc=f"attention of {study.title}", disable=not progress):
        key = {
            "attention": {"sinks": SINKS, "after": AFTER, "shares": KEY_SHARES, "dtype": "float32"},
            "base_sha256": base_hash(study.base),
            "ids_sha256": hashlib.sha256(passage.ids.astype("<i8").tobytes()).hexdigest(),
        }
        work = partial(_measure, study.base, passage.ids, loaded)
        layers = remember(key, work, runs=runs, prefix="attention", used=used)
        where = {"model": study.title, "document": corpus.names[passage.document], "start": passage.start}
        rows += [{**where, "tokens": study.passage_tokens, **layer} for layer in layers]
    frame = pd.DataFrame(rows)
    frame.attrs |= {"data": corpus_record(study.corpus, corpus), "runs": run_records(used)}
    return frame


def measure_models(
    studies: Sequence[AttentionStudy],
    *,
    runs: Path = Path("runs"),
    cache: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The rows of several models' `measure_attention`, one model after the other.

    `rows.attrs` record each model's text by its title (`data`) and all `runs`.
    """
    frames = [measure_attention(study, runs=runs, cache=cache, progress=progress) for study in studies]
    rows = pd.concat(frames, ignore_index=True)
    rows.attrs["data"] = {s.title: own.attrs["data"] for s, own in zip(studies, frames, strict=True)}
    rows.attrs["runs"] = [run for frame in frames for run in frame.attrs["runs"]]
    return rows


def _measure(base: str, ids: np.ndarray, loaded: list[PreTrainedModel]) -> list[dict[str, float]]:
    if not loaded:
        model: Any = AutoModelForCausalLM.from_pretrained(model_path(base), dtype=torch.float32)
        loaded.append(model.to(default_device()).eval())
    layers: list[dict[str, float]] = []
    visit_attention(loaded[0], ids, lambda layer, weights: layers.append({"layer": layer, **reduce(weights)}))
    return layers


def reduce(weights: Tensor) -> dict[str, float]:
    """What is kept of one layer's weights [H, N, N]: see `measure_attention`."""
    queries = weights[:, AFTER:]
    received = weights.sum(1).double()
    first = queries[:, :, :SINKS].sum(-1).mean(-1)
    kept = {"first 1": float(queries[:, :, 0].mean())}
    kept |= {sink_column(head): float(share) for head, share in enumerate(first)}
    for kind, keys in ((ALL, received), (ASIDE, received[:, SINKS:])):
        curve = received_by_most_attended(keys).mean(0)
        kept |= {curve_column(kind, s): float(y) for s, y in zip(KEY_SHARES, curve, strict=True)}
    return kept


def sink_column(head: int) -> str:
    """The column of the share that a head gives to the first tokens."""
    return f"first {SINKS}, head {head}"


def curve_column(kind: str, share: float) -> str:
    """The column of the share that so large a share of keys receives."""
    return f"{kind}, {share:g}"


def received_by_most_attended(received: Tensor, shares: Sequence[float] = KEY_SHARES) -> Tensor:
    """Share of all attention [..., S] that each share of the keys, most attended first, receives [..., N].

    Between whole numbers of keys the attention of the next one counts in proportion.
    """
    curve = received.sort(-1, descending=True).values.cumsum(-1)
    curve = torch.cat([torch.zeros_like(curve[..., :1]), curve / curve[..., -1:]], -1)
    place = torch.tensor(shares, dtype=torch.float64, device=received.device) * received.shape[-1]
    below = place.floor().long().clamp(max=received.shape[-1] - 1)
    return torch.lerp(curve[..., below], curve[..., below + 1], (place - below).to(curve.dtype))


def uniform_received(num_tokens: int) -> Tensor:
    """What each key receives where every query attends evenly to all that it sees: [N], float64."""
    return (1 / torch.arange(1, num_tokens + 1, dtype=torch.float64)).flip(0).cumsum(0).flip(0)


def uniform_curve(kind: str, num_tokens: int) -> Tensor:
    """`received_by_most_attended` of uniform causal attention, for one kind of keys."""
    received = uniform_received(num_tokens)
    return received_by_most_attended(received if kind == ALL else received[SINKS:])
