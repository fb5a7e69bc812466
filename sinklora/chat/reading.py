"""How a document is read into a cache: at once, or in pieces where it is longer than the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from sinklora.cache.policies import CachePolicy
from sinklora.hf.rope import find_transformer

PIECE = 1024  # tokens that are read at once where positions count inside the cache
ROOM = 16  # one part of so many of a model's context is left for questions and answers, at least

Progress = Callable[[float], None]


class Stopped(Exception):
    """Reading was stopped; nothing of it is kept."""

    def __init__(self, words: str = "Stopped; nothing was read.") -> None:
        super().__init__(words)


class Plan(NamedTuple):
    """`positions` of the cache (see `BudgetCache`), and so many tokens `at_once`."""

    positions: str
    at_once: int


def plan_reading(policy: CachePolicy, tokens: int, trained: int | None, stream: bool) -> Plan:
    """How so many tokens are read by a model that was `trained` for so many (None: any).

    With room for questions they are read at once, where they stand. A longer document is read in pieces, with
    positions inside the cache (StreamingLLM), if `stream` says so: what was evicted before a later piece
    came is gone for it. Raises ValueError where that was not asked for, or cannot be done.
    """
    room = 0 if trained is None else trained // ROOM
    if trained is None or tokens + room <= trained:
        return Plan("text", tokens)
    beyond = (
        f"the document has {tokens} tokens, and the model was trained for {trained}, of which {room} are "
        "kept for questions and answers"
    )
    if not stream:
        raise ValueError(
            f"{beyond}: read it as a stream (positions inside the cache), give a shorter one, or a model "
            "whose context was extended"
        )
    if not policy.bounded or policy.sharing.among != "head":
        raise ValueError(
            f"policy={policy.name!r}: {beyond}, and this policy cannot read a stream; take h2o or streaming"
        )
    budget = policy_tokens(policy, tokens)
    if budget + room >= trained:
        raise ValueError(
            f"budget={policy.whole_budget!r}: keeps {budget} tokens, which leaves no room in the {trained} "
            f"that the model was trained for; give at most {trained - room - 1}"
        )
    return Plan("cache", min(PIECE, trained - budget))


def policy_tokens(policy: CachePolicy, tokens: int) -> int:
    """Tokens that a policy keeps of so many."""
    return min(policy.split(tokens).total, tokens)


@contextmanager
def watched(
    model: nn.Module, progress: Progress, stopped: Callable[[], bool]
) -> Iterator[Callable[[int, int], None]]:
    """Layer by layer, tell how much is read; raise `Stopped`, after each module in them, once `stopped`.

    Gives a function that is told, before each call of the model, which of how many calls it is.
    """
    layers, at = decoder_layers(model), [0, 1]

    def begin(call: int, calls: int) -> None:
        at[:] = [call, calls]

    def check(*_: Any) -> None:
        if stopped():
            raise Stopped

    def after(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            progress((at[0] + (number + 1) / len(layers)) / at[1])

        return hook

    handles = [part.register_forward_hook(check) for layer in layers for part in layer.modules()]
    handles += [layer.register_forward_hook(after(number)) for number, layer in enumerate(layers)]
    try:
        yield begin
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The blocks of a causal language model, in their order."""
    transformer = find_transformer(model)
    number = transformer.config.num_hidden_layers
    for module in transformer.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ValueError(f"{type(transformer).__name__}: no list of {number} layers found")
