"""Logits and losses of the tokens that are scored, and of no others, some positions at a time."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from sinklora.hf.device import input_device
from sinklora.hf.rope import find_transformer

LogitsFunction = Callable[[Tensor, Tensor], Iterator[Tensor]]

LOGIT_ROWS = 1024  # positions whose logits are held at once


def logits_function(model: nn.Module) -> LogitsFunction:
    """A function from ids [B, N] and scored [B, N-1] to the scored logits, in pieces [<= LOGIT_ROWS, V].

    It applies the output layer to the positions it needs. Where more than that lies between the last hidden
    state and the logits (soft-capping, scaling), which a probe tells, the model makes all logits of a window.
    """
    transformer = find_transformer(model)
    decoder, head = transformer.get_decoder(), transformer.get_output_embeddings()
    if head is None:
        raise TypeError(f"{type(transformer).__name__} has no output layer; use AutoModelForCausalLM")

    def pieces(ids: Tensor, scored: Tensor) -> Iterator[Tensor]:
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][scored]
        return (head(rows) for rows in hidden.split(LOGIT_ROWS))

    def whole(ids: Tensor, scored: Tensor) -> Iterator[Tensor]:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, :-1][scored]
        return iter(logits.split(LOGIT_ROWS))

    # The same rows go through the output layer both ways: where nothing follows it, they agree bit for bit.
    probe = torch.arange(min(8, transformer.config.vocab_size), device=input_device(transformer))[None]
    expected = model(input_ids=probe, use_cache=False).logits
    made = head(decoder(input_ids=probe, use_cache=False).last_hidden_state).to(expected.dtype)
    return pieces if torch.equal(made, expected) else whole


def scored_losses(logits_of: LogitsFunction, ids: Tensor, scored: Tensor) -> Tensor:
    """Nats of each scored token of ids [B, N], row by row, where `scored` [B, N-1]; float64 on the CPU.

    `logits_of`: what `logits_function` made.
    """
    targets = ids[:, 1:][scored].split(LOGIT_ROWS)
    losses = [
        _token_losses(logits, target.to(logits.device)).double().cpu()
        for logits, target in zip(logits_of(ids, scored), targets, strict=True)
    ]
    return torch.cat(losses)


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    precise = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(precise), targets, reduction="none")
