"""A bounded cache by brute force: every key is held, and a mask says which ones a policy has left.

One sequence at a time, Python lists, one eviction after the other. Of the library it takes what a policy says
of itself: its fields, how its budget is split (`split`) and among whom (`sharing`), which tests of the
policies compare with numbers worked by hand.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel

from helpers import assert_close
from sinklora.cache.policies import CachePolicy
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import VOCABULARY


@dataclass
class Head:
    """What one key/value head of one layer keeps, and the attention that each token received, by query."""

    kept: list[int] = field(default_factory=list)
    received: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    replayed: dict[int, float] = field(default_factory=dict)  # the most that a moved query looks at a token
    beside: list["Head"] = field(default_factory=list)  # all heads of its layer
    given: dict[int, float] = field(default_factory=dict)  # scores of the last prompt or turn, by token


Score = Callable[[Head, int, int, Any], float]  # head, position, newest position, policy


def attention_score(head: Head, position: int, now: int, policy: Any) -> float:
    """What a token has received from queries, as a `Score` of H2O says."""
    rule, total = policy.scoring, 0.0
    for query, weight in head.received[position]:
        if rule.window and query <= now - rule.window:
            continue
        total += weight * rule.decay ** (now - query)
    return total / (now + 1 - position) if rule.average else total


def novelty_score(head: Head, position: int, now: int, policy: Any) -> float:
    """1 - cosine of the most similar newer value."""
    mine = head.values[position]
    newer = [value for p, value in head.values.items() if p > position]
    far = float((1 - torch.cosine_similarity(mine, torch.stack(newer), -1)).min()) if newer else 2.0
    return 0.0 if far < 8 * torch.finfo(mine.dtype).eps else far


def replay_score(head: Head, position: int, now: int, policy: Any) -> float:
    """The most that a moved query looks at a token, times its value's length, and the faded attention of the
    others, by query head.
    """
    weights = head.received[position]
    groups = sum(query == now for query, _ in weights)
    attention = sum(weight * policy.decay ** (now - query) for query, weight in weights)
    length = float(head.values[position].norm())
    return head.replayed.get(position, 0.0) * length + policy.attention_weight * attention / groups


def given_score(head: Head, position: int, now: int, policy: Any) -> float:
    """What the last prompt or turn gave a token at its end; 0 for what came later."""
    return head.given.get(position, 0.0)


def tova_score(head: Head, position: int, now: int, policy: Any) -> float:
    """What the newest query gives a token, on average over all query heads of the layer."""
    newest = [weight for h in head.beside for query, weight in h.received[position] if query == now]
    return sum(newest) / len(newest)


def no_score(head: Head, position: int, now: int, policy: Any) -> float:
    """Without scores the oldest is evicted."""
    return 0.0


SCORES: dict[str, Score] = {
    "h2o": attention_score,
    "novelty": novelty_score,
    "replay": replay_score,
    "snapkv": given_score,
    "expected_attention": given_score,
    "tova": tova_score,
    **dict.fromkeys(("full", "local", "streaming"), no_score),
}


class Simulation:
    """The policy applied to every layer of a model; `run` feeds it calls of several tokens.

    `score`: how the policy ranks a token, by hand; those of SCORES unless given. `positions="cache"`: the
    tokens that a query sees are at 0, 1, 2, ... `limits`: policies that take over before a call, by its
    number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: CachePolicy,
        chunk: int | None = None,
        *,
        score: Score | None = None,
        positions: str = "text",
        limits: Mapping[int, CachePolicy] = MappingProxyType({}),
    ) -> None:
        self.model, self.policy, self.chunk, self.positions = model, policy, chunk, positions
        self.own, self.limits = policy, limits
        self.score = SCORES[policy.name] if score is None else score
        self.among = policy.sharing.among
        self.heads: dict[tuple[int, int], Head] = {}
        self.totals: dict[int, Any] = {}
        self.first: dict[int, int] = {}  # by layer, how many of the first tokens always stay
        self.calls: list[tuple[int, int]] = []  # number and length of those that the model now runs

    def run(self, tokens: Tensor, calls: list[int]) -> Tensor:
        """Logits [N, vocabulary] of one row of tokens, fed in calls of so many tokens.

        Where no layer waits for another, the model is run once, and each layer takes one call after the
        other; what is not attention treats every token by itself.
        """
        before = self.model.config._attn_implementation
        AttentionInterface.register("simulation", self.attend)
        AttentionMaskInterface.register("simulation", lambda *args, **kwargs: None)
        self.model.set_attn_implementation("simulation")
        cache, logits, start = DynamicCache(), [], 0
        numbered = list(enumerate(calls))
        with torch.no_grad():
            for together in [[call] for call in numbered] if self.among == "model" else [numbered]:
                self.calls = together
                new = sum(length for _, length in self.calls)
                part = tokens[None, start : start + new]
                logits.append(self.model(part, past_key_values=cache).logits[0])
                start += new
                if self.among == "model":
                    self.share(list(self.heads), start - 1, new)
        self.model.set_attn_implementation(before)
        return torch.cat(logits)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        """One layer's attention, [1, heads, N, D]: one call after the other, without later keys."""
        output, first = torch.zeros_like(query), key.shape[2] - query.shape[2]
        start = first
        for number, new in self.calls:
            self.begin(number, module.layer_idx, start + new, new)
            step = self.chunk if self.chunk and new > 1 else new
            for begin in range(start, start + new, step):
                fresh = range(begin, min(begin + step, start + new))
                rows = slice(begin - first, fresh[-1] + 1 - first)
                output[0, :, rows] = self.read(
                    module.layer_idx, fresh, query[0, :, rows], key[0], value[0], scaling
                )
                if self.among == "layer":
                    self.share([at for at in self.heads if at[0] == module.layer_idx], fresh[-1], new)
            start += new
        return output.transpose(1, 2), None

    def begin(self, number: int, layer: int, length: int, new: int) -> None:
        """What a layer may keep from a call on, which makes its text so long."""
        due = [limit for limit in self.limits if limit <= number]
        self.policy = self.limits[max(due)] if due else self.own
        if number in self.limits:
            self.totals.pop(layer, None)
        if new > 1 or length == 1:  # a prompt, or a further turn
            split, old = self.policy.split(length), self.totals.get(layer)
            split = split if old is None or split.total > old.total else old
            if self.score is no_score and self.has_evicted(layer, length - new):
                first = min(split.protected, self.first[layer])
                split = type(split)(first, 0, split.total - first)
            self.totals[layer], self.first[layer] = split, split.protected

    def has_evicted(self, layer: int, seen: int) -> bool:
        """Whether a layer has fewer tokens than it has seen."""
        return any(len(head.kept) < seen for at, head in self.heads.items() if at[0] == layer)

    def read(
        self, layer: int, fresh: range, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        """Outputs of a chunk's queries, [heads, N, D], over what was kept and the chunk; then some leave."""
        output, groups = torch.zeros_like(query), len(query) // len(key)
        for kv_head in range(len(key)):
            head = self.heads.setdefault((layer, kv_head), Head())
            own = slice(kv_head * groups, (kv_head + 1) * groups)
            for position in fresh:
                head.received[position] = []
                head.values[position] = value[kv_head, position]
            for row, now in enumerate(fresh):
                seen = head.kept + [p for p in fresh if p <= now]
                keys = self.placed(key[kv_head, seen], seen, range(len(seen)))
                asked = self.placed(query[own, row], [now] * groups, [len(seen) - 1] * groups)
                weights = (asked @ keys.mT * scaling).softmax(-1)
                output[own, row] = weights @ value[kv_head, seen]
                for position, given in zip(seen, weights.T.tolist(), strict=True):
                    head.received[position] += [(now, weight) for weight in given]
            if self.policy.name in AT_END:
                AT_END[self.policy.name](self, head, fresh, query[own], key[kv_head], scaling)
            head.kept += list(fresh)
        mine = [head for place, head in self.heads.items() if place[0] == layer]
        for head in mine:
            head.beside = mine
            if self.among == "head":
                self.evict(head, fresh[-1], self.totals[layer])
        return output

    def share(self, places: list[tuple[int, int]], now: int, new: int) -> None:
        """Let heads (layer, head) that share their slots evict after a call of so many tokens."""
        split, sharing = self.totals[places[0][0]], self.policy.sharing
        slots = split.total * len(places)
        if new == 1 and now > 0:
            was_full = sum(len(self.heads[place].kept) - 1 for place in places) == slots
            for place in places:
                self.evict(self.heads[place], now, split, total=len(self.heads[place].kept) - was_full)
            return
        if sum(len(self.heads[place].kept) for place in places) <= slots:
            return
        recent = max(split.recent, 1)
        own = min(split.protected + recent + int(sharing.own_share * split.heavy + 1e-9), split.total)
        pool, left = [], slots
        for place in places:
            head = self.heads[place]
            always = [p for p in head.kept if p < split.protected or p > now - recent]
            scores = {p: self.score(head, p, now, self.policy) for p in head.kept}
            others = sorted(set(head.kept) - set(always), key=lambda p, scores=scores: (-scores[p], -p))
            sure = max(own - len(always), 0)
            pool += [(-scores[p], -p, place) for p in others[sure:]]
            head.kept = always + others[:sure]
            left -= len(head.kept)
        for _, position, place in sorted(pool)[:left]:
            self.heads[place].kept.append(-position)

    def replay(self, head: Head, fresh: range, query: Tensor, key: Tensor, scaling: float) -> None:
        """Let the queries of a chunk, [groups, N, D] from `fresh` on, look at all of it from behind it."""
        every = head.kept + list(fresh)
        keys = self.placed(key[every], every, range(len(every)))
        end = fresh[-1] if self.positions == "text" else len(every) - 1
        place = end if len(fresh) == 1 else end + 1  # a single token looks from its own place
        moved = turn(query.flatten(0, 1), place - torch.tensor(fresh).repeat(len(query)), self.frequencies())
        most = (moved @ keys.mT * scaling).softmax(-1).amax(0).tolist()
        for position, weight in zip(every, most, strict=True):
            if len(fresh) > 1 or position != fresh[0]:
                head.replayed[position] = max(head.replayed.get(position, 0.0), weight)

    def snap(self, head: Head, fresh: range, query: Tensor, key: Tensor, scaling: float) -> None:
        """Let the last queries of a chunk of several tokens score all that came before them."""
        if len(fresh) == 1:
            return
        policy: Any = self.policy
        window = min(policy.split(fresh[-1] + 1).recent, len(fresh))
        older = [p for p in sorted([*head.kept, *fresh]) if p <= fresh[-1] - window]
        received = [
            sum(weight for q, weight in head.received[p] if q > fresh[-1] - window) / (window * len(query))
            for p in older
        ]
        reach = policy.pool // 2
        head.given = {
            p: sum(received[max(0, i - reach) : i + reach + 1]) / policy.pool for i, p in enumerate(older)
        }

    def expect(self, head: Head, fresh: range, query: Tensor, key: Tensor, scaling: float) -> None:
        """Let normally distributed queries of the next positions, like a chunk's, score all keys."""
        policy: Any = self.policy
        counted = [p for p in fresh if p >= policy.sink_tokens]
        if len(counted) < 2:
            return
        every = sorted([*head.kept, *fresh])
        scored = [i for i, p in enumerate(every) if p >= policy.sink_tokens]
        keys = self.placed(key[every], every, range(len(every)))[scored]
        end = fresh[-1] if self.positions == "text" else len(every) - 1
        size, frequencies = query.shape[-1], self.frequencies()
        rotations = [
            turn(torch.eye(size, dtype=query.dtype), torch.full((size,), end + 1 + ahead), frequencies).T
            for ahead in range(policy.future)
        ]
        rotation = torch.stack(rotations).mean(0)
        weights = torch.zeros(len(scored), dtype=query.dtype)
        for mine in query:
            plain = turn(mine[torch.tensor(counted) - fresh[0]], -torch.tensor(counted), frequencies)
            mean, covariance = rotation @ plain.mean(0), rotation @ plain.T.cov(correction=0) @ rotation.T
            logits = [k @ mean * scaling + k @ covariance @ k * scaling**2 / 2 for k in keys]
            weights += torch.stack(logits).softmax(-1) / len(query)
        head.given = {
            every[i]: float((weight + policy.epsilon) * head.values[every[i]].norm())
            for i, weight in zip(scored, weights, strict=True)
        }

    def frequencies(self) -> Tensor:
        """Angles a position, of each pair of a head's numbers."""
        found: Tensor = next(m for m in self.model.modules() if hasattr(m, "inv_freq")).inv_freq
        return found

    def placed(self, rows: Tensor, positions: Sequence[int], places: Sequence[int]) -> Tensor:
        """Queries or keys [N, D] of positions in the text, there or moved to places in the cache."""
        if self.positions == "text":
            return rows
        return turn(rows, torch.tensor(places) - torch.tensor(positions), self.frequencies())

    def evict(self, head: Head, now: int, split: Any, total: int | None = None) -> None:
        while len(head.kept) > (split.total if total is None else total):
            newest = now + 1 - max(split.recent, 1)
            may_go = [p for p in head.kept if split.protected <= p < newest]
            head.kept.remove(min(may_go, key=lambda p: (self.score(head, p, now, self.policy), p)))


# What a policy does at the end of a chunk, before anything is evicted.
AT_END: dict[str, Callable[[Simulation, Head, range, Tensor, Tensor, float], None]] = {
    "replay": Simulation.replay,
    "snapkv": Simulation.snap,
    "expected_attention": Simulation.expect,
}

Check = Callable[[BudgetCache, int, Simulation], None]  # of one row against the simulation of it


def turn(x: Tensor, by: Tensor, frequencies: Tensor) -> Tensor:
    """Rotated queries or keys [N, D] so many positions [N] further on: halves as complex numbers."""
    angle, half = by[:, None] * frequencies.double(), len(frequencies)
    pairs = torch.complex(x[:, :half].double(), x[:, half : 2 * half].double())
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag, x[:, 2 * half :].double()], 1).to(x.dtype)


def tokens(rows: int = 1, length: int = 26, seed: int = 3) -> Tensor:
    """Random tokens [rows, length], none of them special."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(cache: BudgetCache, model: torch.nn.Module, ids: Tensor, calls: list[int]) -> Tensor:
    """Logits [rows, N, vocabulary], the tokens fed in calls of so many."""
    parts = ids.split(calls, dim=1)
    return torch.cat([model(part, past_key_values=cache).logits for part in parts], 1)


def compare(
    model: Any,
    policy: CachePolicy,
    calls: list[int],
    chunk: int | None = None,
    rows: int = 2,
    *,
    score: Score | None = None,
    positions: str = "text",
    atol: float = 1e-9,
    check: Check | None = None,
) -> None:
    """Logits and kept tokens of a BudgetCache are those of the simulation, row by row; `check` adds to it."""
    ids = tokens(rows, sum(calls))
    options = {} if positions == "text" else {"positions": positions}
    cache = BudgetCache(model, policy, prefill_chunk=chunk, **options)
    logits = run(cache, model, ids, calls)
    for row in range(rows):
        truth = Simulation(model, policy, chunk, score=score, positions=positions)
        assert_close(logits[row], truth.run(ids[row], calls), atol=atol)
        check_kept(cache, row, truth)
        if check is not None:
            check(cache, row, truth)


def check_kept(cache: BudgetCache, row: int, truth: Simulation) -> None:
    """A row keeps, in every layer and head, what the simulation keeps."""
    for (layer, head), kept in truth.heads.items():
        found = cache.kept_positions(layer)[row, head]
        assert found[found >= 0].tolist() == sorted(kept.kept)


@torch.no_grad()
def compare_turns(
    model: Any,
    policy: CachePolicy,
    turns: list[list[int]],
    side: str,
    chunk: int | None = None,
    *,
    score: Score | None = None,
    positions: str = "text",
    atol: float = 1e-9,
    check: Check | None = None,
    limit: tuple[int, CachePolicy] | None = None,
) -> None:
    """Turns of so many new tokens, row by row, in one padded batch: each row is what it is alone.

    `limit`: what the cache is limited to before a turn, by the turn's number.
    """
    lengths = [sum(turn[row] for turn in turns) for row in range(len(turns[0]))]
    ids = tokens(len(lengths), max(lengths))
    options = {} if positions == "text" else {"positions": positions}
    cache = BudgetCache(model, policy, prefill_chunk=chunk, **options)
    seen, mask = [0] * len(lengths), torch.zeros(len(lengths), 0, dtype=torch.long)
    logits: list[list[Tensor]] = [[] for _ in lengths]
    for number, turn in enumerate(turns):
        if limit is not None and number == limit[0]:
            cache.limit(limit[1])
        new = torch.stack([_padded(count, max(turn), side) for count in turn])
        mask = torch.cat([mask, new], 1)
        places = torch.tensor(seen)[:, None] + (new.cumsum(1) - 1).clamp(min=0)
        given = ids.gather(1, places.clamp(max=ids.shape[1] - 1)) * new
        # A batch that is not padded is what the model is given without a mask, too.
        out = model(given, attention_mask=mask, position_ids=places, past_key_values=cache).logits
        for row, count in enumerate(turn):
            logits[row].append(out[row, new[row].bool()])
            seen[row] += count
    for row, length in enumerate(lengths):
        limits = _limits_of_row(turns, row, limit)
        truth = Simulation(model, policy, chunk, score=score, positions=positions, limits=limits)
        expected = truth.run(ids[row, :length], [turn[row] for turn in turns if turn[row]])
        assert_close(torch.cat(logits[row]), expected, atol=atol)
        check_kept(cache, row, truth)
        if check is not None:
            check(cache, row, truth)


def _limits_of_row(
    turns: list[list[int]], row: int, limit: tuple[int, CachePolicy] | None
) -> dict[int, CachePolicy]:
    """When the row alone has to be limited: before its first call of several tokens from that turn on."""
    if limit is None:
        return {}
    first, policy = limit
    turn = next(turn for turn in range(first, len(turns)) if turns[turn][row] > 1)
    return {sum(before[row] > 0 for before in turns[:turn]): policy}


def _padded(count: int, width: int, side: str) -> Tensor:
    """1 for so many tokens, 0 for the padding: on the left, on the right, or after the first token."""
    padding, real = [0] * (width - count), [1] * count
    order = {"left": padding + real, "right": real + padding, "middle": real[:1] + padding + real[1:]}
    return torch.tensor(order[side])
