"""Dense references, by the definitions: attention with masks, what a policy keeps, and losses.

Nothing here is sinklora's or a peer's: lists, loops and full matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

NAME = "dense_reference"

Mask = Callable[[int], Tensor]  # of a layer: bool, broadcast to [H, N, N]


@dataclass(frozen=True)
class Received:
    """The attention that the keys of a layer receive from a prompt, averaged over the heads of a group.

    [Hkv, N]: from all queries, and from the last ones.
    """

    all_queries: Tensor
    last_queries: Tensor


class DenseModel:
    """A model in float32 whose layers see what a mask says, with all scores in memory."""

    def __init__(self, folder: str | Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.heads: int = self.model.config.num_attention_heads
        self.kv_heads: int = self.model.config.num_key_value_heads
        AttentionMaskInterface.register(NAME, lambda *_, **__: None)
        AttentionInterface.register(NAME, self._attend)
        self.model.set_attn_implementation(NAME)

    @torch.inference_mode()
    def logits(self, ids: Tensor, mask: Mask) -> Tensor:
        """Logits [N, V] of tokens [1, N]."""
        self._mask, self._last, self._received = mask, 0, []
        logits: Tensor = self.model(ids, use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def received(self, ids: Tensor, last: int) -> list[Received]:
        """What the keys of each layer receive of a prompt [1, N] with causal attention."""
        self._mask, self._last, self._received = causal(ids.shape[1]), last, list[Received]()
        self.model(ids, use_cache=False)
        return self._received

    def _attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        groups = self.heads // self.kv_heads
        scores = query @ key.repeat_interleave(groups, 1).mT * scaling
        weights = scores.masked_fill(~self._mask(module.layer_idx), -torch.inf).softmax(-1)
        if self._last:
            by_group = weights[0].unflatten(0, (-1, groups)).mean(1)
            self._received.append(Received(by_group.sum(1), by_group[:, -self._last :].mean(1)))
        return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), None


def causal(tokens: int) -> Mask:
    """Every key up to the query's own."""
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return lambda layer: mask


def newest(tokens: int, window: int) -> Mask:
    """So many of the newest keys."""
    mask = causal(tokens)(0).triu(1 - window)
    return lambda layer: mask


def held(seen: Tensor, groups: int) -> Mask:
    """Causal in the prompt; the steps behind it see themselves and what their caches held, `seen` [steps, L,
    Hkv, N].
    """
    steps, tokens = len(seen), seen.shape[-1]
    base = causal(tokens)(0)

    def mask(layer: int) -> Tensor:
        own = seen[:, layer].repeat_interleave(groups, 1).transpose(0, 1)  # [H, steps, N]
        whole = base.expand(own.shape[0], -1, -1).clone()
        whole[:, -steps:] = own | torch.eye(tokens, dtype=torch.bool)[-steps:]
        return whole

    return mask


def shifted_windows(heads: int, tokens: int, *, wrapped: bool) -> Mask:
    """S² (arXiv 2309.12307, Algorithm 1): windows of a quarter; the second half of the heads is rolled by
    half a window first, which joins the last tokens to the first (`wrapped`), or not.
    """
    group = tokens // 4
    mask = torch.zeros(heads, tokens, tokens, dtype=torch.bool)
    for head in range(heads):
        order = list(range(tokens))
        if head >= heads // 2:
            order = order[group // 2 :] + order[: group // 2]
        for begin in range(0, tokens, group):
            window = order[begin : begin + group]
            for place, query in enumerate(window):
                seen = [key for key in window[: place + 1] if wrapped or key <= query]
                mask[head, query, seen] = True
    return lambda layer: mask


def quarter_windows_with_sinks(tokens: int) -> Mask:
    """SF-Attn (arXiv 2406.05678, section 3.1): windows of a quarter, and the first four tokens for all."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    group = -(-tokens // 4)
    mask = (key <= query) & ((key // group == query // group) | (key < 4))
    return lambda layer: mask


def mask_of(reference: str, heads: int, tokens: int, window: int) -> Mask:
    """The mask that a case's `reference` names."""
    if reference in ("s2", "s2_wrapped"):
        return shifted_windows(heads, tokens, wrapped=reference == "s2_wrapped")
    if reference == "sf":
        return quarter_windows_with_sinks(tokens)
    return newest(tokens, window) if reference == "window" else causal(tokens)


def loss(logits: Tensor, ids: Tensor) -> float:
    """Mean next-token loss of logits [N, V] of tokens [1, N]."""
    return float(F.cross_entropy(logits[:-1], ids[0, 1:]))


def window_tokens(total: int) -> int:
    """The window whose queries choose for SnapKV: 64, at most half of what is kept."""
    return max(1, min(64, total // 2))


def _best(scores: list[float], among: range, count: int) -> set[int]:
    return set(sorted(among, key=lambda p: -scores[p])[:count])


def keep_h2o(received: list[float], last: list[float], total: int) -> set[int]:
    """Half the newest, and of the others those that received most (arXiv 2306.14048)."""
    recent = total - total // 2
    older = len(received) - recent
    return set(range(older, len(received))) | _best(received, range(older), total // 2)


def keep_averaged(received: list[float], last: list[float], total: int) -> set[int]:
    """Those that received most from each query that could see them, on average."""
    count = len(received)
    return _best([x / (count - p) for p, x in enumerate(received)], range(count), total)


def keep_snapkv(received: list[float], last: list[float], total: int) -> set[int]:
    """The window, and of the others those that it looks at most, averaged over five neighbours
    (arXiv 2404.14469).
    """
    window = window_tokens(total)
    older = len(received) - window
    around = [sum(last[max(0, p - 2) : min(older, p + 3)]) / 5 for p in range(older)]
    return set(range(older, len(received))) | _best(around, range(older), total - window)


def keep_streaming(received: list[float], last: list[float], total: int) -> set[int]:
    """The first four and the newest (arXiv 2309.17453)."""
    count = len(received)
    return {*range(4), *range(count - total + 4, count)}


def keep_local(received: list[float], last: list[float], total: int) -> set[int]:
    """The newest."""
    return set(range(len(received) - total, len(received)))


KEEPS: dict[str, Callable[[list[float], list[float], int], set[int]]] = {
    "h2o": keep_h2o,
    "averaged": keep_averaged,
    "snapkv": keep_snapkv,
    "streaming": keep_streaming,
    "local": keep_local,
}


def share_as_defined(kept: Tensor, received: list[Received], keeps: str) -> float:
    """Of the tokens that a cache keeps of a prompt, bool [L, Hkv, N], the share that the definition keeps of
    as many.
    """
    right = every = 0
    for layer, by_layer in zip(kept, received, strict=True):
        rows = zip(layer, by_layer.all_queries.tolist(), by_layer.last_queries.tolist(), strict=True)
        for marks, from_all, from_last in rows:
            kept_places = set(marks.nonzero().flatten().tolist())
            right += len(kept_places & KEEPS[keeps](from_all, from_last, len(kept_places)))
            every += len(kept_places)
    return right / every
