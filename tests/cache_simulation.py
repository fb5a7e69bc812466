"""A bounded cache by brute force: every key is held, and a mask says which ones a policy has left.

One sequence at a time, Python lists, one eviction after the other; nothing here is shared with the library.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from sinklora.cache.policies import CachePolicy, ValueNovelty


@dataclass
class Head:
    """What one key/value head of one layer keeps, and the attention that each token received, by query."""

    kept: list[int] = field(default_factory=list)
    received: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def score(self, position: int, now: int, policy: CachePolicy) -> float:
        rule, total = policy.score, 0.0
        if rule is None:
            return 0.0
        if isinstance(rule, ValueNovelty):
            mine = self.values[position]
            newer = [v for p, v in self.values.items() if p > position]
            far = min((1 - float(torch.cosine_similarity(mine, v, 0)) for v in newer), default=2.0)
            return 0.0 if far < 8 * torch.finfo(mine.dtype).eps else far
        for query, weight in self.received[position]:
            if rule.window and query <= now - rule.window:
                continue
            total += weight * rule.decay ** (now - query)
        return total / (now + 1 - position) if rule.average else total


class Simulation:
    """The policy applied to every layer of a model; `run` feeds it calls of several tokens."""

    def __init__(self, model: PreTrainedModel, policy: CachePolicy, chunk: int | None = None) -> None:
        self.model, self.policy, self.chunk = model, policy, chunk
        self.heads: dict[tuple[int, int], Head] = {}
        self.totals: dict[int, Any] = {}

    def run(self, tokens: Tensor, calls: list[int]) -> Tensor:
        """Logits [N, vocabulary] of one row of tokens, fed in calls of so many tokens."""
        before = self.model.config._attn_implementation
        AttentionInterface.register("simulation", self.attend)
        AttentionMaskInterface.register("simulation", lambda *args, **kwargs: None)
        self.model.set_attn_implementation("simulation")
        cache, logits, start = DynamicCache(), [], 0
        with torch.no_grad():
            for length in calls:
                part = tokens[None, start : start + length]
                logits.append(self.model(part, past_key_values=cache).logits[0])
                start += length
        self.model.set_attn_implementation(before)
        return torch.cat(logits)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        new, length, layer = query.shape[2], key.shape[2], module.layer_idx
        groups = query.shape[1] // key.shape[1]
        output = torch.zeros_like(query)
        if new > 1 or length == 1:  # a prompt, or a further turn
            split, old = self.policy.split(length), self.totals.get(layer)
            self.totals[layer] = split if old is None or split.total > old.total else old
        step = self.chunk if self.chunk and new > 1 else new
        for begin in range(0, new, step):
            end = min(begin + step, new)
            for kv_head in range(key.shape[1]):
                head = self.heads.setdefault((layer, kv_head), Head())
                fresh = range(length - new + begin, length - new + end)
                for position in fresh:
                    head.received[position] = []
                    head.values[position] = value[0, kv_head, position]
                for now in fresh:
                    seen = head.kept + [p for p in fresh if p <= now]
                    for h in range(kv_head * groups, (kv_head + 1) * groups):
                        logits = key[0, kv_head, seen] @ query[0, h, now - (length - new)] * scaling
                        weights = logits.softmax(-1)
                        output[0, h, now - (length - new)] = weights @ value[0, kv_head, seen]
                        for position, weight in zip(seen, weights.tolist(), strict=True):
                            head.received[position].append((now, weight))
                head.kept += list(fresh)
                self.evict(head, fresh[-1], self.totals[layer])
        return output.transpose(1, 2), None

    def evict(self, head: Head, now: int, split: Any) -> None:
        while len(head.kept) > split.total:
            newest = now + 1 - max(split.recent, 1)
            may_go = [p for p in head.kept if split.protected <= p < newest]
            head.kept.remove(min(may_go, key=lambda p: (head.score(p, now, self.policy), p)))
