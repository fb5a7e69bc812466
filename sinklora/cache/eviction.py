"""Who stays and who is evicted: sink tokens and the newest always stay, of the others the highest scores.

H2O (arXiv 2306.14048), Algorithm 1, for every policy with scores whose heads have slots of their own. After
a prompt, a turn or a chunk `choose_kept` takes the best at once; in decoding one token enters, so that one
leaves: `lowest_slot` says which, called by `next_slot` in a `growing_step` and directly in a `steady_step`
and the `filling_step` that is made of it. A policy without scores evicts the oldest, in a ring (`rows`).
Where heads share slots, `sharing.keep_shared` chooses for all of them, and `ragged_eviction.leaving_slots`
in decoding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.rows import Rows
from sinklora.cache.scores import Scorer
from sinklora.cache.slots import EMPTY, as_column, like, write_slot
from sinklora.cache.storage import TokenStorage, padded


def keep_chosen(
    storage: TokenStorage, keys: Tensor, values: Tensor, positions: Tensor, *, ordered: bool
) -> None:
    """Store of all these tokens [B, Hkv, L, ...] those that stay, in the order of their positions.

    `ordered`: they are in that order already, and there is no padding among them.
    """
    assert storage.rows is not None
    rows, kept = storage.rows, max(storage.rows.stored)
    free = storage.slots_for(kept) - kept
    columns = {} if storage.scorer is None else storage.scorer.state
    slices = _kept_slices(storage, positions.shape[2]) if ordered else None
    pair = None
    if slices is not None:
        pair = _joined([keys, values], slices, free)
        parts = [positions[..., part] for part in slices]
        positions = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    else:
        index, positions = choose_kept(storage, positions)
        columns = {name: x.gather(-1, as_column(index, x)) for name, x in columns.items()}
        if min(rows.stored) < kept:
            columns = {name: x.masked_fill_(as_column(positions < 0, x), 0) for name, x in columns.items()}
        index = F.pad(index, (0, free))[..., None]  # what stands in free slots does not matter
        keys, values = (x.gather(2, like(index, x)) for x in (keys, values))
    columns = {**columns, "positions": positions}
    columns = {name: padded(name, x, free) for name, x in columns.items()}
    if pair is None:
        storage.replace(keys, values, columns)
    else:
        storage.replace_pair(pair, columns)
    storage.used = kept
    rows.start_decoding()
    storage.next_slot = rows.slots(rows.next_slots, positions.shape[1])


def _kept_slices(storage: TokenStorage, length: int) -> list[slice] | None:
    """Where those that stay are among `length` ordered tokens; None where scores decide, or rows differ."""
    assert storage.rows is not None
    rows = zip(storage.rows.stored, storage.rows.splits, strict=True)
    (kept, protected), *others = {(stored, split.protected) for stored, split in rows}
    if others or (storage.scorer is not None and kept < length):
        return None
    if kept == length or not protected:
        return [slice(length - kept, length)]
    return [slice(0, protected), slice(length - kept + protected, length)]


def _joined(tensors: list[Tensor], slices: list[slice], free: int) -> Tensor:
    """Pieces of each of these [B, Hkv, L, D] along L, in one tensor [B, Hkv, len(tensors), slots, D].

    Behind them are free slots, in which anything may stand.
    """
    batch, heads, _, size = tensors[0].shape
    more = free if free <= slices[-1].stop - slices[-1].start else 0
    pieces = []
    for x in tensors:
        pieces += [x[:, :, part] for part in slices]
        pieces.append(pieces[-1][:, :, :more])
    joined = torch.cat(pieces, 2).view(batch, heads, len(tensors), -1, size)
    return F.pad(joined, (0, 0, 0, free - more)) if more < free else joined


def choose_kept(storage: TokenStorage, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Index [B, Hkv, kept] of the tokens that stay of [B, Hkv, L] `positions`, oldest first; their positions.

    The storage's scores are those of all L. Of equal scores the newer one stays.
    """
    rows = storage.counted()
    order = newest_first(ranked(storage, positions), positions)
    most = max(rows.stored)
    kept = order[..., :most]
    at = positions.gather(-1, kept)
    at = torch.where(torch.arange(most, device=at.device) < rows.numbers(rows.stored), at, EMPTY)
    by_position = torch.where(at < 0, torch.iinfo(at.dtype).max, at).argsort(-1)
    return kept.gather(-1, by_position), at.gather(-1, by_position)


def ranked(storage: TokenStorage, positions: Tensor) -> Tensor:
    """What decides between tokens [B, Hkv, L], whose scores the storage has: the lowest are evicted."""
    rows, scorer = storage.counted(), storage.scorer
    if scorer is None:
        rank = torch.zeros(positions.shape, device=positions.device)
    else:
        rank = scorer.rank(scorer.state["scores"], positions, rows.numbers(rows.tokens))
        rank = rank.nan_to_num(float("-inf"), posinf=torch.finfo(rank.dtype).max)  # below what always stays
    rank = rank.masked_fill(_always_stays(rows, positions), float("inf"))
    return rank.masked_fill(positions < 0, float("-inf"))  # free slots and padding


def newest_first(rank: Tensor, positions: Tensor) -> Tensor:
    """Index of tokens [..., L], the highest rank first; of equal ones the newer first."""
    newest = positions.argsort(dim=-1, descending=True, stable=True)
    return newest.gather(-1, rank.gather(-1, newest).argsort(dim=-1, descending=True, stable=True))


def _always_stays(rows: Rows, positions: Tensor) -> Tensor:
    """Protected and recent tokens, and free slots; the newest one is always recent."""
    pairs = zip(rows.tokens, rows.splits, strict=True)
    recent_from = rows.numbers([seen - max(split.recent, 1) for seen, split in pairs])
    return (positions >= recent_from) | (positions < rows.numbers([s.protected for s in rows.splits]))


def next_slot(rows: Rows, scorer: Scorer | None, columns: dict[str, Tensor]) -> int | Tensor:
    """Evict for a decoded token where a row is full, and say which slot of each row is free now.

    `columns` are positions [..., B, Hkv, slots] and the scorer's state, of one layer or of several stacked;
    they and the `rows` include the decoded token. In a full row the lowest score leaves; of equals the oldest
    goes, as in a prompt.
    """
    heads = columns["positions"].shape[:-1]
    slot = rows.numbers(rows.next_slots)
    slot = slot.expand(*heads, 1) if isinstance(slot, Tensor) else slot
    if not any(rows.evicting):
        return slot
    if scorer is not None:
        recent, protected = (rows.numbers(x) for x in rows.always_kept())
        lowest = lowest_slot(scorer, columns, rows.numbers(rows.tokens), recent, protected)
        slot = lowest if all(rows.evicting) else torch.where(rows.numbers(rows.evicting), lowest, slot)
    for name, x in columns.items():
        write_slot(x, slot, EMPTY if name == "positions" else 0, -1)
    return slot


def lowest_slot(scorer: Scorer, columns: dict[str, Tensor], seen: Any, recent: Any, protected: Any) -> Tensor:
    """The slot of the token that leaves, by row and head [..., B, Hkv, 1].

    `seen`, `recent` (1 or more), `protected`: a number, or [B, 1, 1]. Where all always stay, any slot.
    """
    positions = columns["positions"]
    rank = scorer.rank(columns["scores"], positions, seen)
    rank = rank.nan_to_num(float("-inf"), posinf=torch.finfo(rank.dtype).max)  # below what always stays
    rank = rank.masked_fill_((positions >= seen - recent) | (positions < protected), float("inf"))
    oldest_of_lowest = positions.masked_fill(rank > rank.amin(-1, keepdim=True), torch.iinfo(torch.int32).max)
    return oldest_of_lowest.argmin(-1, keepdim=True)
