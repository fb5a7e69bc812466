"""A look at a few tokens: does every layer of a model really use the attention function it was given?"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinklora.hf.architecture import attention_layers
from sinklora.hf.device import input_device, probing_device
from sinklora.hf.document_ids import LostDocumentsError

PADDED = ((1, 1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 0, 0, 0))

PACKED = ((0, 1, 2, 3, 4, 0, 1, 2), (0, 1, 2, 0, 1, 2, 3, 4))

ROUNDINGS = 4  # of the largest logit: what two readings of the same may differ by

_Call = tuple[int, Tensor | None]

_calls: ContextVar[list[_Call] | None] = ContextVar("sinklora_probe", default=None)


def record_call(module: nn.Module, document_ids: Tensor | None) -> None:
    """Note that `module` attends by the pattern, with which documents; nothing happens outside of a probe."""
    calls = _calls.get()
    if calls is not None:
        calls.append((id(module), document_ids))


def probe_model(transformer: PreTrainedModel) -> None:
    """ValueError unless every attention layer uses the pattern and is told of padding and documents.

    Runs the model twice on 2 x 8 tokens in training mode without gradients; modes, gradients and random state
    stay.
    """
    device = probing_device(transformer)
    padded = torch.tensor(PADDED, device=device)
    calls = _run(transformer, padded, attention_mask=padded)
    _check_calls(transformer, calls, padded, "padding (a 2-D attention_mask)")
    if "position_ids" in inspect.signature(transformer.forward).parameters:
        positions = torch.tensor(PACKED, device=device)
        try:
            calls = _run(transformer, padded, attention_mask=None, position_ids=positions)
        except LostDocumentsError:
            return  # the architecture cannot pack documents; training with packed ones will raise this again
        _check_calls(
            transformer,
            calls,
            (positions == 0).long().cumsum(-1),
            "packed documents (restarting position_ids)",
        )


def check_packing(model: PreTrainedModel) -> None:
    """ValueError where what a document's tokens come to depends on the document before it in a packed row.

    Documents are told of by positions that restart. Layers that carry a state over the row know nothing of
    them, nor do models whose masks transformers makes of nothing else. Runs the model twice on 16 tokens in
    training mode without gradients; modes, gradients and random state stay.
    """
    device = probing_device(model)
    positions = torch.arange(8, device=device).repeat(1, 2)
    second = torch.arange(8, device=device) + 1
    found = []
    with _training_untouched(model):
        for first in (second, second.flip(0)):
            torch.manual_seed(0)  # for the same dropout
            row = torch.cat([first, second])[None]
            logits = model(input_ids=row, position_ids=positions, use_cache=False).logits
            found.append(logits[0, 8:].float())
    apart, size = (found[1] - found[0]).abs().max(), found[0].abs().max()
    if not apart <= ROUNDINGS * torch.finfo(logits.dtype).eps * size:
        raise ValueError(
            f"{type(model).__name__} lets a document of a packed row see the one before it (its layers carry "
            "something over the beginnings of documents, or its attention is not told of them): give each "
            "document a row of its own"
        )


def _run(transformer: PreTrainedModel, like: Tensor, **inputs: Tensor | None) -> list[_Call]:
    calls: list[_Call] = []
    token = _calls.set(calls)
    try:
        with _training_untouched(transformer):
            transformer(input_ids=torch.ones_like(like), use_cache=False, **inputs)
    except (IndexError, RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"{type(transformer).__name__} failed on {like.numel()} tokens under the pattern ({error}): most "
            "likely its attention makes masks of its own, which no pattern can replace"
        ) from error
    finally:
        _calls.reset(token)
    return calls


@contextmanager
def _training_untouched(transformer: PreTrainedModel) -> Iterator[None]:
    modes = [(module, module.training) for module in transformer.modules()]
    used = {input_device(transformer), *(p.device for p in transformer.parameters())}
    devices = sorted({device.index or 0 for device in used if device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            transformer.train()
            yield
    finally:
        for module, training in modes:
            module.training = training


def _check_calls(transformer: PreTrainedModel, calls: list[_Call], expected: Tensor, what: str) -> None:
    name = type(transformer).__name__
    layers = {layer for layer, _ in calls}
    wanted = len(attention_layers(transformer.config))
    # Either count will do: layers may be run several times a pass, or attend several times a run.
    if not calls or wanted not in (len(layers), len(calls)):
        raise ValueError(
            f"{name} used the pattern in {len(layers)} of {wanted} attention layers: its architecture does "
            "not fully honour transformers' AttentionInterface, so no pattern can be put on it"
        )
    if any(ids is None or not torch.equal(ids, expected.to(ids.device)) for _, ids in calls):
        raise ValueError(
            f"{name} does not pass {what} on to its attention: training would silently ignore it"
        )
