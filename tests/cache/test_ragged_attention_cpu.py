"""Compiled operators for heads that keep different numbers of tokens, against PyTorch's own, in float64."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from helpers import assert_close
from sinklora.cache.ragged_attention import RaggedHeads, _head_by_head, attend_ragged
from sinklora.cache.ragged_attention_cpu import (
    LOWEST_SLOTS,
    RAGGED_ATTENTION,
    attend_ragged_on_cpu,
    has_compiled_attention,
    has_compiled_eviction,
    lowest_slots_on_cpu,
)
from sinklora.cache.ragged_eviction import _leaving_slots, leaving_slots
from sinklora.cache.slots import EMPTY
from sinklora.operators.build import INSTRUCTIONS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OUTPUT_ERROR = {
    torch.float32: 2e-6,
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}  # rounded, of values up to 4
# Of three rows with three heads: none, one token, a piece and a token more, odd, several pieces, a whole one.
SLOTS = [0, 1, 129, 5, 300, 128, 2, 0, 701]


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Compile the operators; skip only where nobody could."""
    if torch.backends.cpu.get_cpu_capability() not in INSTRUCTIONS or not (
        shutil.which("c++") or shutil.which("g++")
    ):
        pytest.skip("needs a C++ compiler and AVX2 or AVX-512")
    assert RAGGED_ATTENTION.find() is not None and LOWEST_SLOTS.find() is not None


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def projections(
    groups: int, size: int, dtype: torch.dtype, slots: list[int] = SLOTS, rows: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """A query a row, and the keys and values of all heads."""
    query = torch.randn(rows, len(slots) // rows * groups, 1, size).to(dtype)
    key, value = torch.randn(2, sum(slots), size).to(dtype)
    return query, key, value


def of_slot(slots: list[int]) -> Tensor:
    return torch.arange(len(slots)).repeat_interleave(torch.tensor(slots))


def some_visible() -> Tensor:
    """About two thirds, one or more of each head; a whole piece of the last head is hidden."""
    visible = torch.rand(sum(SLOTS)) < 2 / 3
    first = torch.tensor(SLOTS).cumsum(0)[[0, 1, 2, 3, 4, 5, 7]]
    visible[first] = True
    visible[-300:-170] = False
    return visible


def check(query: Tensor, key: Tensor, value: Tensor, scale: float, visible: Tensor | None) -> None:
    groups = query.shape[0] * query.shape[1] // len(SLOTS)
    expected = torch.empty(groups, len(key), dtype=torch.float64)
    grouped = query.double().reshape(len(SLOTS), groups, -1)
    heads = RaggedHeads(SLOTS, of_slot(SLOTS))
    attended = _head_by_head(grouped, key.double(), value.double(), scale, expected, heads, visible)
    weights = torch.full((groups, len(key)), 9.0)
    output = attend_ragged_on_cpu(query, key, value, scale, weights, SLOTS, visible)
    assert output.dtype == query.dtype
    # Scores are summed in float32: those of a hundred to 1e-5.
    assert_close(output, attended.reshape(output.shape), atol=OUTPUT_ERROR[query.dtype] * max(1, scale))
    assert_close(weights, expected, atol=1e-9, rtol=1e-5 * max(1, scale))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "size"), [(1, 64), (3, 64), (8, 64), (5, 128), (3, 80), (1, 7), (4, 16)])
def test_attention_is_that_of_each_head(groups: int, size: int, dtype: torch.dtype, hidden: bool) -> None:
    visible = some_visible() if hidden else None
    check(*projections(groups, size, dtype), 0.2, visible)


def test_scores_far_apart() -> None:
    query, key, value = projections(3, 64, torch.float32)
    check(query, key, value, 3.0, None)  # scores of a hundred: most weights are nothing
    check(query, key, value, 0.0, some_visible())


def test_values_may_have_another_size() -> None:
    query, key, _ = projections(2, 32, torch.float32)
    check(query, key, torch.randn(len(key), 72), 0.2, None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(dtype: torch.dtype, two_threads: None) -> None:
    slots = [4000, 3, 0, 777, 2500, 1]
    query, key, value = projections(3, 64, dtype, slots, rows=2)
    found = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        weights = torch.empty(3, len(key))
        found.append((attend_ragged_on_cpu(query, key, value, 0.125, weights, slots), weights))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_head_without_slots_gives_zeros_and_one_that_sees_nothing_no_number() -> None:
    query, key, value = projections(2, 16, torch.float32)
    visible = torch.ones(len(key), dtype=torch.bool)
    visible[1:130] = False  # the third head
    weights = torch.empty(2, len(key))
    output = attend_ragged_on_cpu(query, key, value, 0.2, weights, SLOTS, visible).view(len(SLOTS), 2, 16)
    assert not output[0].any() and not output[7].any()
    assert output[2].isnan().all() and weights[:, 1:130].isnan().all()
    assert not output[3:].isnan().any() and not weights[:, 130:].isnan().any()


def test_a_head_that_is_no_number_spoils_no_other() -> None:
    query, key, value = projections(2, 7, torch.float32)
    key[200], value[0] = float("nan"), float("inf")  # in pieces of their own heads, beside those of others
    weights = torch.empty(2, len(key))
    output = attend_ragged_on_cpu(query, key, value, 0.2, weights, SLOTS).view(len(SLOTS), 2, 7)
    spoilt = ~output.isfinite().all(-1).all(-1)
    assert spoilt.nonzero().flatten().tolist() == [1, 4]
    assert weights.isnan().any(0).nonzero().flatten().tolist() == list(range(135, 435))


# --- who is asked -------------------------------------------------------------------------------------------


def test_many_slots_are_attended_to_by_the_operator_and_few_as_before() -> None:
    query, key, value = projections(3, 16, torch.bfloat16)
    weights = torch.empty(3, len(key))
    compiled = attend_ragged_on_cpu(query, key, value, 0.2, weights.clone(), SLOTS)
    grouped, heads = query.reshape(len(SLOTS), 3, 16), RaggedHeads(SLOTS, of_slot(SLOTS))
    by_head = _head_by_head(grouped, key, value, 0.2, weights.clone(), heads, None).view_as(query)
    assert not torch.equal(compiled, by_head)  # it does not round scores to bfloat16
    for many, expected in ((True, compiled), (False, by_head)):
        heads = RaggedHeads(SLOTS, of_slot(SLOTS), many)
        assert torch.equal(attend_ragged(query, key, value, 0.2, weights, heads), expected)
    found = torch.compile(attend_ragged, backend="eager", fullgraph=True)(
        query, key, value, 0.2, weights, RaggedHeads(SLOTS, of_slot(SLOTS), True)
    )
    assert_close(found, compiled, atol=0.05)


def test_what_the_operator_does_not_serve_goes_as_before() -> None:
    query, key, value = projections(3, 16, torch.float32)
    assert has_compiled_attention(query, key, value)
    assert not has_compiled_attention(query, key, value.bfloat16())
    assert not has_compiled_attention(query.double(), key.double(), value.double())
    assert not has_compiled_attention(query, key.T.contiguous().T, value)
    assert not has_compiled_attention(query, key, value[:, ::2])
    double = [x.double() for x in (query, key, value)]
    weights = torch.empty(3, len(key), dtype=torch.float64)
    output = attend_ragged(*double, 0.2, weights, RaggedHeads(SLOTS, of_slot(SLOTS), True))
    assert output.dtype == torch.float64
    query.requires_grad_()
    assert not has_compiled_attention(query, key, value)
    with torch.no_grad():
        assert has_compiled_attention(query, key, value)


def test_what_does_not_go_together_is_named() -> None:
    query, key, value = projections(3, 16, torch.float32)
    weights = torch.empty(3, len(key))

    def refused(words: str, **changed: object) -> None:
        given = {"query": query, "key": key, "value": value, "weights": weights, "slots": SLOTS, **changed}
        with pytest.raises(RuntimeError, match=words):
            attend_ragged_on_cpu(scale=0.2, **given)  # type: ignore[arg-type]

    refused(r"query has shape \[3, 9, 16\], expected \[batch, heads, 1", query=query[:, :, 0])
    refused(r"query has shape \[3, 9, 2, 16\]", query=query.repeat(1, 1, 2, 1))
    refused("key and value have shapes .* do not go with query's", key=key[:, :8].contiguous())
    refused("key and value have shapes .* do not go with query's", value=value[1:])
    refused("slots has 8 heads, which do not go with", slots=SLOTS[1:])
    refused("slots has 1265 slots in all, but there are 1266", slots=[*SLOTS[:-1], 700])
    refused("slots has -1, expected numbers of slots", slots=[-1, 2, *SLOTS[2:]])
    refused(r"weights has shape \[2, 1266\] in Float, expected \[3, 1266\] in Float", weights=weights[:2])
    refused("weights has shape .* in Double", weights=weights.double())
    refused("query, key and value are in Float, Float and BFloat16", value=value.bfloat16())
    refused("key and value have strides .*, expected contiguous", key=key.T.contiguous().T)
    refused(r"visible has shape \[5\] in Bool", visible=torch.ones(5, dtype=torch.bool))
    refused("visible has shape .* in Float", visible=torch.ones(len(key)))
    double = {"query": query.double(), "key": key.double(), "value": value.double()}
    refused("query is in Double, expected Float, BFloat16 or Half", **double)


# --- who leaves ---------------------------------------------------------------------------------------------


def leaving_by_hand(
    rank: Tensor, positions: Tensor, slots: list[int], row_of_head: list[int], recent: Tensor, before: Tensor
) -> list[int]:
    found, begin = [], 0
    for head, count in enumerate(slots):
        row, mine = row_of_head[head], []
        for slot in range(begin, begin + count):
            position, value = int(positions[slot]), float(rank[slot])
            stays = position >= recent[row] or position < before[row]
            number = float("-inf") if value != value else min(max(value, -3e38), 3e38)
            mine.append((float("inf") if stays else number, position, slot))
        found.append(min(mine)[2])
        begin += count
    return found


def ranked(slots: list[int], ties: bool) -> tuple[Tensor, Tensor]:
    """Ranks and positions, some of them equal, no number, infinite or empty."""
    total = sum(slots)
    positions = torch.cat([torch.randperm(3 * count)[:count] for count in slots]).int()
    positions[torch.rand(total) < 0.05] = EMPTY
    rank = torch.randint(5, (total,)).float() if ties else torch.randn(total)
    for value in (float("nan"), float("inf"), float("-inf")):
        rank[torch.rand(total) < 0.02] = value
    return rank, positions


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_of_those_that_may_the_oldest_of_the_lowest_rank_leaves(ties: bool, rows: int) -> None:
    slots = [1, 2, 129, 5, 300, 128, 2, 7, 1701]
    row_of_head = torch.arange(rows).repeat_interleave(9 // rows)
    heads = RaggedHeads(slots, of_slot(slots), many=True)
    for _ in range(20):
        rank, positions = ranked(slots, ties)
        recent, before = torch.randint(1, 400, (rows,)), torch.randint(5, (rows,))
        expected = leaving_by_hand(rank, positions, slots, row_of_head.tolist(), recent, before)
        given = (rank, positions, heads, row_of_head, recent, before)
        assert leaving_slots(*given).tolist() == expected
        assert _leaving_slots(*given).tolist() == expected
        assert leaving_slots(rank.double(), *given[1:]).tolist() == expected


def test_threads_do_not_change_who_leaves(two_threads: None) -> None:
    slots = [2000, 1, 1, 1, 3000, 7]
    rank, positions = ranked(slots, ties=True)
    numbers = torch.arange(1).repeat(6), torch.tensor([4000]).int(), torch.tensor([3]).int()
    found = lowest_slots_on_cpu(rank, positions, slots, *numbers)
    torch.set_num_threads(1)
    assert torch.equal(found, lowest_slots_on_cpu(rank, positions, slots, *numbers))


def test_ranks_that_do_not_go_together_are_named() -> None:
    rank, positions = torch.rand(9), torch.arange(9).int()
    row_of_head, one = torch.zeros(2, dtype=torch.long), torch.ones(1, dtype=torch.int32)
    assert has_compiled_eviction(rank) and not has_compiled_eviction(rank.double())

    def refused(words: str, **changed: object) -> None:
        given = {"rank": rank, "positions": positions, "slots": [4, 5], "row_of_head": row_of_head, **changed}
        with pytest.raises(RuntimeError, match=words):
            lowest_slots_on_cpu(**{"first_recent": one, "protected": one, **given})  # type: ignore[arg-type]

    refused("rank has shape .* in Double", rank=rank.double())
    refused("positions has shape .* in Long", positions=positions.long())
    refused(r"positions has shape \[8\]", positions=positions[1:])
    refused("slots has 8 slots in all, but there are 9", slots=[4, 4])
    refused("slots has a head without slots", slots=[0, 9])
    refused(r"row_of_head has shape \[3\] in Long, expected \[2\]", row_of_head=torch.zeros(3).long())
    refused("row_of_head has 1, expected rows below 1", row_of_head=torch.tensor([0, 1]))
    refused("first_recent and protected_before have shapes", protected=torch.ones(2, dtype=torch.int32))
    refused("first_recent and protected_before have shapes", first_recent=one.long())
