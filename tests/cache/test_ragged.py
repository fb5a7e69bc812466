"""Heads that keep different numbers of tokens: packing, attention over them, and what is refused."""

import pytest
import torch
from torch import Tensor

from helpers import assert_close
from sinklora.cache.ragged import pack, unpack
from sinklora.cache.ragged_attention import RaggedHeads, _all_heads, _head_by_head, attend_ragged
from sinklora.cache.slots import EMPTY

COUNTS, FREE = [3, 1, 0, 5, 2, 4], [1, 1, 3, 3, 2, 2]  # of two rows of three heads


def some_tokens(length: int = 7, size: int = 4) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(2, 3, length, size, generator=generator) for _ in range(2))
    columns = {
        "positions": torch.arange(length, dtype=torch.int32).expand(2, 3, length),
        "scores": torch.rand(2, 3, length, generator=generator),
        "history": torch.rand(2, 3, 5, length, generator=generator),
    }
    kept = torch.zeros(6, length, dtype=torch.bool)
    for head, count in enumerate(COUNTS):
        kept[head, torch.randperm(length, generator=generator)[:count]] = True
    return keys, values, columns, kept.view(2, 3, length)


def test_packed_heads_follow_each_other_in_order_with_their_free_slots() -> None:
    keys, values, columns, kept = some_tokens()
    packed = pack(keys, values, columns, kept, COUNTS, FREE)
    assert packed.slots == [4, 2, 3, 8, 4, 6]
    begin = 0
    for head, (count, slots) in enumerate(zip(COUNTS, packed.slots, strict=True)):
        mine = kept.view(6, -1)[head]
        for found, before in (
            (packed.keys, keys.flatten(0, 1)),
            (packed.values, values.flatten(0, 1)),
            (packed.columns["scores"], columns["scores"].flatten(0, 1)),
            (packed.columns["history"].T, columns["history"].flatten(0, 1).mT),
        ):
            assert torch.equal(found[begin : begin + count], before[head][mine])
        positions = packed.columns["positions"][begin : begin + slots].tolist()
        assert positions == [*mine.nonzero().flatten().tolist(), *[EMPTY] * (slots - count)]
        assert not packed.columns["scores"][begin + count : begin + slots].any()
        begin += slots
    assert begin == len(packed.keys) == 27


def test_what_was_packed_is_unpacked() -> None:
    packed = pack(*some_tokens(), COUNTS, FREE)
    keys, values, columns = unpack(packed, batch=2)
    assert keys.shape == (2, 3, 8, 4) and columns["history"].shape == (2, 3, 5, 8)
    kept = columns["positions"] >= 0
    assert kept.sum(-1).flatten().tolist() == COUNTS
    again = pack(keys, values, columns, kept, COUNTS, FREE)
    assert again.slots == packed.slots
    for mine, other in zip(again.tensors(), packed.tensors(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("attend", [_head_by_head, _all_heads])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_each_head_attends_to_its_own(attend: object, hidden: bool, dtype: torch.dtype, atol: float) -> None:
    generator, slots, groups, size = torch.Generator().manual_seed(2), [4, 1, 9, 3], 3, 8
    of_slot = torch.arange(4).repeat_interleave(torch.tensor(slots))
    key, value = (torch.randn(17, size, generator=generator).to(dtype) for _ in range(2))
    query = torch.randn(4, groups, size, generator=generator).to(dtype)
    visible = torch.ones(17, dtype=torch.bool)
    if hidden:
        visible[torch.tensor([1, 3, 7, 13])] = False
    weights = torch.empty(groups, 17, dtype=torch.promote_types(dtype, torch.float32))
    output = attend(query, key, value, 0.3, weights, RaggedHeads(slots, of_slot), visible if hidden else None)  # type: ignore[operator]
    for head, begin in enumerate((0, 4, 5, 14)):
        mine = slice(begin, begin + slots[head])
        scores = query[head].double() @ key[mine].double().T * 0.3
        expected = scores.masked_fill(~visible[mine], float("-inf")).softmax(-1)
        assert_close(weights[:, mine], expected, atol=atol)
        assert_close(output[head], expected @ value[mine].double(), atol=atol)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_many_slots_of_a_head_are_added_up_in_float32(device: str) -> None:
    """All heads at once: in bfloat16 the output is the exact one, rounded; small addends do not vanish."""
    generator, slots, size = torch.Generator().manual_seed(3), [2000, 1500], 16
    key, value = (torch.randn(3500, size, generator=generator).bfloat16() for _ in range(2))
    value += 1  # a sum of addends of one sign
    query = torch.randn(2, 2, size, generator=generator).bfloat16()
    of_slot = torch.arange(2).repeat_interleave(torch.tensor(slots))
    given = (tensor.to(device) for tensor in (query, key, value))
    heads = RaggedHeads(slots, of_slot.to(device))
    output = _all_heads(*given, 0.1, torch.empty(2, 3500, device=device), heads, None).cpu()
    parts = zip(query.double(), key.double().split(slots), value.double().split(slots), strict=True)
    expected = torch.stack([(q @ k.T * 0.1).softmax(-1) @ v for q, k, v in parts])
    torch.testing.assert_close(output.double(), expected, rtol=2**-8 + 1e-4, atol=0)


def test_the_query_heads_of_a_row_are_those_of_its_key_heads() -> None:
    query = torch.randn(2, 6, 1, 8)  # two rows, two key/value heads
    key, value = (torch.randn(20, 8) for _ in range(2))
    heads = RaggedHeads([5] * 4, torch.arange(4).repeat_interleave(5))
    weights = torch.empty(3, 20)
    output = attend_ragged(query, key, value, 0.5, weights, heads)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.view(2, 2, 5, 8), value.view(2, 2, 5, 8), scale=0.5, enable_gqa=True
    )
    assert_close(output, expected, atol=1e-5)
