"""A cache of a causal model: reads a prompt, then tokens one by one; which tokens it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from peer_sides.subject import Answers, Setting
from sinklora.evaluate.timing import Stopwatch


class OpenCache(Protocol):
    """An empty cache and the model that it serves."""

    def read(self, ids: Tensor) -> Tensor:
        """Logits [V] behind a prompt [1, N]."""
        ...

    def step(self, token: Tensor, position: int) -> Tensor:
        """Logits [V] behind one more token [1, 1]."""
        ...

    def positions(self) -> list[Tensor] | None:
        """By layer, the positions of the tokens held [Hkv, K], -1 for none; None where it holds all."""
        ...

    def held(self) -> int:
        """The most tokens that a head holds, counted in its tensors."""
        ...


class CacheSubject:
    """A case that is about a cache; `opened` gives it empty."""

    def __init__(self, opened: Callable[[], OpenCache], setting: Setting) -> None:
        self.opened, self.setting = opened, setting

    @torch.inference_mode()
    def answers(self) -> Answers:
        """Logits [steps, V] of the tokens behind the prompt; `seen` [steps, L, Hkv, N]: what each found in
        the cache, where it does not hold all; how many tokens it holds before and after.
        """
        cache, ids, begin = self.opened(), self.setting.ids(), self.setting.prompt
        cache.read(ids[:, :begin])
        first, logits, seen = cache.held(), [], []
        for position in range(begin, ids.shape[1]):
            positions = cache.positions()
            if positions is not None:
                seen.append(torch.stack([marked(p, ids.shape[1]) for p in positions]))
            logits.append(cache.step(ids[:, position : position + 1], position))
        tensors = {"logits": torch.stack(logits)} | ({"seen": torch.stack(seen)} if seen else {})
        return Answers(tensors, {"held": [first, cache.held()]})

    @torch.inference_mode()
    def laps(self, warm: bool = False) -> dict[str, list[float]]:
        """Seconds of the prompt, and of all steps."""
        ids, begin = self.setting.ids(), self.setting.prompt
        if warm:
            ids, begin = ids[:, :34], 32
        cache = self.opened()
        watch = Stopwatch("cpu")
        cache.read(ids[:, :begin])
        read = list(watch.lap())
        for position in range(begin, ids.shape[1]):
            cache.step(ids[:, position : position + 1], position)
        return {"prompt": read, "decoding": list(watch.lap())}


def marked(positions: Tensor, length: int) -> Tensor:
    """Positions [Hkv, K] as marks, bool [Hkv, length]; -1 marks nothing."""
    marks = torch.zeros(len(positions), length + 1, dtype=torch.bool)
    marks.scatter_(1, positions.cpu().masked_fill(positions.cpu() < 0, length), True)
    return marks[:, :length]


class PlainCache:
    """A cache of transformers that holds all tokens, or does not say which."""

    def __init__(self, model: Any, cache: Any) -> None:
        self.model, self.cache = model, cache

    def read(self, ids: Tensor) -> Tensor:
        output = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[0, -1]
        return logits

    def step(self, token: Tensor, position: int) -> Tensor:
        where = torch.tensor([[position]])
        output = self.model(token, past_key_values=self.cache, use_cache=True, position_ids=where)
        logits: Tensor = output.logits[0, -1]
        return logits

    def positions(self) -> list[Tensor] | None:
        return None

    def held(self) -> int:
        return int(self.cache.layers[0].keys.shape[-2])
