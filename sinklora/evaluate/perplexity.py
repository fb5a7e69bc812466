"""Sliding-window perplexity: every token of a document except its first is predicted exactly once.

`sliding_windows` says which window scores which tokens, `scored_logits` gives only those positions logits.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from sinklora.attention.patterns import PATTERNS
from sinklora.evaluate.over_ranks import shared
from sinklora.evaluate.scored_logits import LogitsFunction, logits_function, scored_losses
from sinklora.evaluate.sliding_windows import Window, batches, windows_of
from sinklora.hf.device import input_device
from sinklora.hf.models import current_pattern, evaluates_with_pattern
from sinklora.hf.rope import find_transformer, forget_longest_input
from sinklora.records.checks import check_choice, check_counts

Short = Literal["score", "skip", "error"]


@dataclass(frozen=True)
class DocumentScore:
    """Score of one document: its place in the input, the tokens predicted, their mean loss in nats."""

    index: int
    tokens: int
    nll: float


@dataclass(frozen=True)
class PerplexityResult:
    """Token-weighted perplexity and everything needed to compare it with another one.

    `nll` is the mean over `tokens` predicted tokens, in nats. `documents` were scored; of all those given,
    `short_documents` are shorter than `context` (`short` says what became of them) and `tiny_documents` have
    fewer than two tokens, so that nothing can be predicted. `attention` is "full" or the pattern's name;
    `bos` tells that documents are taken as given: no token is added.
    """

    perplexity: float
    nll: float
    tokens: int
    documents: int
    short_documents: int
    tiny_documents: int
    per_document: tuple[DocumentScore, ...]
    context: int
    stride: int
    short: Short
    attention: str
    dtype: str
    bos: str = "as given"

    def to_dict(self) -> dict[str, Any]:
        """JSON types, per-document scores included."""
        return {**asdict(self), "per_document": [asdict(score) for score in self.per_document]}


def measure_perplexity(
    model: nn.Module,
    documents: Sequence[NDArray[np.integer[Any]]],
    *,
    context: int,
    stride: int,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
    short: Short = "score",
    group: dist.ProcessGroup | None = None,
) -> PerplexityResult:
    """Perplexity of `documents` (token ids, [tokens] each) in windows of `context` tokens.

    `model` is a causal language model of transformers or a PeftModel around one. It runs in evaluation mode,
    so with its own full attention unless `use_pattern` was told otherwise, and gets its modes back; `device`
    moves it. `batch_size` windows of equal length run together, whatever documents they are from; memory
    grows with batch_size x context, not with the documents. `short`: documents shorter than `context` are
    scored in one window ("score"), left out ("skip") or refused ("error"). `group`: processes that share the
    documents, each with the whole model; all get the result, which is that of one.

    Raises TypeError or ValueError for bad arguments before any work, FloatingPointError for a loss of NaN or
    infinity, and RuntimeError where another process of the group failed.
    """
    _check_numbers(context, stride, batch_size, short)
    documents = [_check_document(index, document) for index, document in enumerate(documents)]
    lengths = [len(document) for document in documents]
    chosen = _choose(lengths, context, short)
    _check_vocabulary(model, documents)
    if device is not None:
        model.to(device)

    def scores_of(places: list[int]) -> list[DocumentScore]:
        read = list(batches(places, lengths, context, stride, batch_size))
        with tqdm(
            total=sum(map(len, read)), desc=f"perplexity at {context}", unit="window", disable=not progress
        ) as bar:
            return _scores(model, documents, places, read, bar)

    if group is None:
        scores = scores_of(chosen)
    else:
        costs = [_tokens_read(lengths[index], context, stride) for index in chosen]
        scores = shared(scores_of, chosen, costs, group)
    tokens = sum(score.tokens for score in scores)
    nll = math.fsum(score.nll * score.tokens for score in scores) / tokens
    return PerplexityResult(
        perplexity=_exp(nll),
        nll=nll,
        tokens=tokens,
        documents=len(scores),
        short_documents=sum(length < context for length in lengths),
        tiny_documents=sum(length < 2 for length in lengths),
        per_document=tuple(scores),
        context=context,
        stride=stride,
        short=short,
        attention=attention_name(model),
        dtype=_dtype(model),
    )


def _tokens_read(length: int, context: int, stride: int) -> int:
    """Tokens in all windows of a document."""
    return sum(window.length for window in windows_of(0, length, context, stride))


def _scores(
    model: nn.Module,
    documents: Sequence[NDArray[np.integer[Any]]],
    chosen: Sequence[int],
    batches_read: Iterable[Sequence[Window]],
    bar: Any,
) -> list[DocumentScore]:
    """The scores of the documents at the places `chosen`, whose windows come in batches."""
    sums = dict.fromkeys(chosen, 0.0)
    with evaluation_mode(model), torch.inference_mode():
        losses, length = logits_function(model), 0
        for batch in batches_read:
            if batch[0].length != length:
                forget_longest_input(model)
                length = batch[0].length
            for window, loss in zip(batch, _window_losses(losses, model, documents, batch), strict=True):
                sums[window.document] += loss
            bar.update(len(batch))
    tokens = {index: len(documents[index]) - 1 for index in chosen}
    return [DocumentScore(index, tokens[index], sums[index] / tokens[index]) for index in chosen]


def attention_name(model: nn.Module) -> str:
    """How `model` attends in evaluation mode: "full", or the name of the pattern it was told to keep."""
    if not evaluates_with_pattern(model):
        return "full"
    pattern = current_pattern(model)
    return next((name for name, known in PATTERNS.items() if known == pattern), str(pattern))


def _check_numbers(context: int, stride: int, batch_size: int, short: str) -> None:
    check_counts(2, context=context)
    check_counts(stride=stride, batch_size=batch_size)
    if stride >= context:
        raise ValueError(
            f"stride={stride}: expected less than context={context}, because a window cannot predict its "
            "own first token"
        )
    check_choice("short", short, get_args(Short))


def _check_document(index: int, document: Any) -> NDArray[np.integer[Any]]:
    array = np.asarray(document)
    if array.ndim != 1:
        raise ValueError(f"documents[{index}] has shape {array.shape}; give token ids of shape [tokens]")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"documents[{index}] holds {array.dtype}; give whole-numbered token ids")
    return array


def _check_vocabulary(model: nn.Module, documents: Sequence[NDArray[Any]]) -> None:
    vocabulary = find_transformer(model).config.vocab_size
    for index, document in enumerate(documents):
        if document.size and not 0 <= document.min() <= document.max() < vocabulary:
            held = f"{document.min()} to {document.max()}"
            raise ValueError(
                f"documents[{index}] holds token ids {held} but the model knows 0 to {vocabulary - 1}; "
                "use the model's own tokenizer"
            )


def _choose(lengths: Sequence[int], context: int, short: Short) -> list[int]:
    """Which documents are scored."""
    too_short = [index for index, length in enumerate(lengths) if length < context]
    if short == "error" and too_short:
        index = too_short[0]
        raise ValueError(
            f"documents[{index}] has {lengths[index]} tokens, fewer than context {context}, and so have "
            f"{len(too_short) - 1} others; choose short='score' or short='skip'"
        )
    least = 2 if short == "score" else context
    chosen = [index for index, length in enumerate(lengths) if length >= least]
    if not chosen:
        raise ValueError(
            f"documents: none of the {len(lengths)} given has the {least} tokens it takes to be scored"
        )
    return chosen


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each of its modules gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _window_losses(
    logits_of: LogitsFunction, model: nn.Module, documents: Sequence[NDArray[Any]], batch: Sequence[Window]
) -> list[float]:
    """Summed loss (nats) of each window's scored tokens."""
    rows = np.stack([documents[w.document][w.start : w.stop] for w in batch]).astype(np.int64)
    ids = torch.from_numpy(rows).to(input_device(find_transformer(model)))
    scored = torch.zeros(len(batch), batch[0].length - 1, dtype=torch.bool, device=ids.device)
    for row, window in enumerate(batch):
        scored[row, window.first - window.start - 1 :] = True
    losses = scored_losses(logits_of, ids, scored)
    sums = [float(part.sum()) for part in losses.split(scored.sum(1).tolist())]
    for window, total in zip(batch, sums, strict=True):
        if not math.isfinite(total):
            raise FloatingPointError(f"documents[{window.document}]: the model's loss is {total}")
    return sums


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf


def _dtype(model: nn.Module) -> str:
    """The dtype that most parameters have: adapters and norms may be kept more precise than the rest."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        counts[parameter.dtype] += parameter.numel()
    return str(counts.most_common(1)[0][0]).removeprefix("torch.")
