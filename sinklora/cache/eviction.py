"""Who stays and who is evicted: sink tokens and the newest always stay, of the others the highest scores.

H2O (arXiv 2306.14048), Algorithm 1, for every policy. After a prompt, a turn or a chunk the best are chosen
at once; in decoding one token enters, so that one leaves. A policy without scores evicts the oldest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sinklora.cache.rows import Rows
from sinklora.cache.slots import EMPTY, as_column, like, read_slot
from sinklora.cache.storage import TokenStorage


def keep_chosen(storage: TokenStorage, keys: Tensor, values: Tensor, positions: Tensor) -> None:
    """Store of all these tokens [B, Hkv, L, ...] those that stay, in the order of their positions."""
    assert storage.rows is not None
    columns = {} if storage.scorer is None else storage.scorer.state
    if min(storage.rows.stored) < positions.shape[2] or storage.used:
        kept, positions = choose_kept(storage, positions)
        keys, values = (x.gather(2, like(kept[..., None], x)) for x in (keys, values))
        columns = {name: x.gather(-1, as_column(kept, x)) for name, x in columns.items()}
    # Projections hand out views; decoding over one would copy all of it at every step.
    storage.replace(keys.contiguous(), values.contiguous(), {**columns, "positions": positions})
    storage.used = positions.shape[2]
    storage.rows.start_rings()


def choose_kept(storage: TokenStorage, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Index [B, Hkv, kept] of the tokens that stay of [B, Hkv, L] `positions`, oldest first; their positions.

    The storage's scores are those of all L. Of equal scores the newer one stays.
    """
    assert storage.rows is not None
    rows, scorer = storage.rows, storage.scorer
    if scorer is None:
        rank = torch.zeros(positions.shape, device=positions.device)
    else:
        rank = scorer.rank(scorer.state["scores"], positions, rows.numbers(rows.tokens))
        rank = rank.nan_to_num(float("-inf"), posinf=torch.finfo(rank.dtype).max)  # below what always stays
    rank = rank.masked_fill(_always_stays(rows, positions), float("inf"))
    rank = rank.masked_fill(positions < 0, float("-inf"))
    newest_first = positions.argsort(dim=-1, descending=True)
    by_rank = rank.gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True)
    most = max(rows.stored)
    kept = newest_first.gather(-1, by_rank)[..., :most]
    at = positions.gather(-1, kept)
    at = torch.where(torch.arange(most, device=at.device) < rows.numbers(rows.stored), at, EMPTY)
    by_position = torch.where(at < 0, torch.iinfo(at.dtype).max, at).argsort(-1)
    return kept.gather(-1, by_position), at.gather(-1, by_position)


def _always_stays(rows: Rows, positions: Tensor) -> Tensor:
    """Protected and recent tokens; the newest one is always recent."""
    pairs = zip(rows.tokens, rows.splits, strict=True)
    recent_from = rows.numbers([seen - max(split.recent, 1) for seen, split in pairs])
    return (positions >= recent_from) | (positions < rows.numbers([s.protected for s in rows.splits]))


def free_slot(storage: TokenStorage) -> int | Tensor:
    """The slot for one new token a row: a free one, or where the evicted token was.

    Scores must include the new token's attention. In a full row, the token that stops being recent and the
    heavy hitters compete: the lowest score is evicted, and the slot of the other one becomes free.
    """
    assert storage.rows is not None and storage.positions is not None
    rows, heads, full = storage.rows, storage.positions.shape[1], storage.rows.full()
    place = [_oldest_recent(rows, row) if full[row] else n for row, n in enumerate(rows.stored)]
    if storage.scorer is not None and any(full):
        leaving = rows.slots([slot if f else 0 for slot, f in zip(place, full, strict=True)], heads)
        _evict_lowest(storage, leaving, full)
    if not all(full):
        storage.grow(max(n for n, f in zip(place, full, strict=True) if not f) + 1)
    return rows.slots(place, heads)


def _oldest_recent(rows: Rows, row: int) -> int:
    """The slot of the token that stops being recent: the last slots of a full row are a ring of those."""
    recent = max(rows.splits[row].recent, 1)
    return rows.splits[row].total - recent + (rows.tokens[row] - rows.ring_starts[row]) % recent


def _evict_lowest(storage: TokenStorage, leaving: int | Tensor, full: list[bool]) -> None:
    """The token that stops being recent takes the slot of the lowest heavy hitter, unless it is lower itself.

    Of equals the oldest goes, as in a prompt; a heavy hitter is older than every recent token.
    """
    assert storage.rows is not None and storage.scorer is not None and storage.positions is not None
    rows, scorer, positions = storage.rows, storage.scorer, storage.positions
    sinks = [split.protected for split in rows.splits]
    ends = [split.total - max(split.recent, 1) for split in rows.splits]
    first, end = min(sinks), max(ends)
    if end <= first:
        return
    seen, scores = rows.numbers([n + 1 for n in rows.tokens]), scorer.state["scores"]
    rank = scorer.rank(scores[..., first:end], positions[..., first:end], seen)
    own = scorer.rank(read_slot(scores, leaving, -1), read_slot(positions, leaving, -1), seen)
    if len(set(zip(full, sinks, ends, strict=True))) > 1:
        slot = torch.arange(first, end, device=positions.device)
        heavy = (slot >= rows.numbers(sinks)) & (slot < rows.numbers(ends)) & rows.numbers(full)
        rank = rank.masked_fill(~heavy, float("inf"))
    lowest = rank.amin(-1, keepdim=True)
    of_equals = positions[..., first:end].masked_fill(rank > lowest, torch.iinfo(torch.int32).max)
    victim = of_equals.argmin(-1, keepdim=True) + first
    storage.move(leaving, torch.where(lowest <= own, victim, leaving))
