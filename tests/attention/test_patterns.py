"""Patterns against METHOD's formulas, written once more here as plain loops."""

import dataclasses
import json
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from sinklora.attention import patterns as patterns
from sinklora.attention.kinds.fixed import FixedPattern
from sinklora.attention.kinds.random_blocks import RandomPattern
from sinklora.attention.kinds.stride import StridePattern
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import Pattern, document_spans
from sinklora.attention.patterns import (
    FIXED,
    FULL,
    PATTERNS,
    RANDOM,
    S2,
    S2_WRAPPED,
    SF,
    SF_SHIFTED,
    SHORT,
    STRIDE,
    find_pattern,
    pattern_from_dict,
)

LENGTHS = (1, 2, 3, 7, 8, 16, 21, 32)
WINDOWED = {name: pattern for name, pattern in PATTERNS.items() if isinstance(pattern, AttentionPattern)}
CAUSAL = {name: pattern for name, pattern in PATTERNS.items() if name != "s2_wrapped"}

by_name = pytest.mark.parametrize("name", PATTERNS)


def window_rule(group: int, offset: int, sinks: int, length: int) -> Callable[[int, int], bool]:
    """METHOD: boundaries 0, offset, offset + G, ..., N; `start` is the largest boundary <= i."""
    boundaries = {0} | set(range(offset, length, group))

    def rule(i: int, j: int) -> bool:
        start = max(boundary for boundary in boundaries if boundary <= i)
        return j <= i and (j >= start or j < sinks)

    return rule


def wrapped_rule(group: int, length: int) -> Callable[[int, int], bool]:
    """The first half group sees itself and, though later, the last half group; the rest is cut in windows."""
    half = group // 2
    tail = max(length - half, half)

    def rule(i: int, j: int) -> bool:
        if i < half:
            return j <= i or j >= tail
        start = tail if i >= tail else max(range(half, i + 1, group))
        return start <= j <= i

    return rule


def formula(pattern: AttentionPattern, group: int, heads: int, length: int) -> Tensor:
    """The mask [H, N, N] by the letter of METHOD, pair by pair."""
    shifted_heads = int(pattern.shifted_fraction * heads + 0.5)
    mask = torch.zeros(heads, length, length, dtype=torch.bool)
    for head in range(heads):
        shifted = head >= heads - shifted_heads
        if shifted and pattern.wrapped:
            rule = wrapped_rule(group, length)
        else:
            rule = window_rule(group, group // 2 if shifted else 0, pattern.sink_tokens, length)
        for i, j in product(range(length), range(length)):
            mask[head, i, j] = rule(i, j)
    return mask


def quarter(num_tokens: int, even: bool) -> int:
    group = -(-num_tokens // 4)
    return group + group % 2 if even else group


@pytest.mark.parametrize("heads", (1, 2, 3, 4))
@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("name", WINDOWED)
def test_visible_is_the_formula(name: str, num_tokens: int, heads: int) -> None:
    pattern = WINDOWED[name]
    group = num_tokens if pattern == FULL else quarter(num_tokens, even=pattern.shifted_fraction > 0)
    assert torch.equal(pattern.visible(heads, num_tokens), formula(pattern, group, heads, num_tokens))


@given(
    half=st.integers(1, 6),
    sinks=st.integers(0, 9),
    shifted=st.sampled_from((0.0, 0.25, 0.5, 0.7, 1.0)),
    heads=st.integers(1, 5),
    num_tokens=st.integers(1, 24),
)
def test_visible_is_the_formula_for_any_numbers(
    half: int, sinks: int, shifted: float, heads: int, num_tokens: int
) -> None:
    pattern = AttentionPattern(2 * half, sinks, shifted)
    assert torch.equal(pattern.visible(heads, num_tokens), formula(pattern, 2 * half, heads, num_tokens))
    wrapped = AttentionPattern(2 * half, shifted_fraction=shifted or 1.0, wrapped=True)
    assert torch.equal(wrapped.visible(heads, num_tokens), formula(wrapped, 2 * half, heads, num_tokens))


def test_visible_by_eye() -> None:
    """N = 8, G = 4, one sink; the second head is shifted."""
    rows = AttentionPattern(4, sink_tokens=1, shifted_fraction=0.5).visible(2, 8).int().tolist()
    assert ["".join(map(str, row)) for row in rows[0]] == [
        "10000000",
        "11000000",
        "11100000",
        "11110000",
        "10001000",
        "10001100",
        "10001110",
        "10001111",
    ]
    assert ["".join(map(str, row)) for row in rows[1]] == [
        "10000000",
        "11000000",
        "10100000",
        "10110000",
        "10111000",
        "10111100",
        "10000010",
        "10000011",
    ]


def test_counts() -> None:
    """A window of G tokens includes the query; sinks come on top; full is everything."""
    assert SHORT.visible(2, 64).sum(-1).max() == 16
    assert SF.visible(2, 64).sum(-1).max() == 20
    assert FULL.visible(1, 9).sum() == 45


@pytest.mark.parametrize("num_tokens", LENGTHS)
@by_name
def test_no_future_and_always_itself(name: str, num_tokens: int) -> None:
    mask = PATTERNS[name].visible(4, num_tokens)
    future = mask.triu(1)
    assert mask.diagonal(dim1=1, dim2=2).all()
    assert not future[: 2 if name == "s2_wrapped" else 4].any()


def test_wrapped_leaks_a_square_per_shifted_head() -> None:
    leaks = S2_WRAPPED.visible(4, 32).triu(1).sum((1, 2))
    assert leaks.tolist() == [0, 0, 16, 16]  # (G/2)^2 with G = 8


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_fixed(num_tokens: int) -> None:
    group = quarter(num_tokens, even=False)
    mask = FIXED.visible(1, num_tokens)[0]
    for i, j in product(range(num_tokens), range(num_tokens)):
        own, summary = i // group == j // group, j % group >= group - 2
        assert mask[i, j] == (j <= i and (own or summary))


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_stride(num_tokens: int) -> None:
    heads, stride = 3, STRIDE.group_tokens(num_tokens)
    mask = STRIDE.visible(heads, num_tokens)
    for h, i, j in product(range(heads), range(num_tokens), range(num_tokens)):
        near, far = i - j < stride, (i - j) % stride == h * stride // heads
        assert mask[h, i, j] == (j <= i and (near or far))


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_random_sees_its_window_and_one_earlier_block(num_tokens: int) -> None:
    group = quarter(num_tokens, even=False)
    mask = RANDOM.visible(4, num_tokens)
    windows = SHORT.visible(4, num_tokens)
    assert (mask & windows).equal(windows)
    for h, i in product(range(4), range(num_tokens)):
        start = i // group * group
        extra = (mask & ~windows)[h, i].nonzero().flatten().tolist()
        expected = 4 if start >= 4 else 0
        assert len(extra) == expected and (not extra or extra == list(range(extra[0], extra[0] + 4)))
        assert all(j < start for j in extra)


def test_random_is_seeded_and_covers_all_earlier_blocks() -> None:
    mask = RandomPattern(group_size=128, seed=1).visible(64, 256)
    assert mask.equal(RandomPattern(group_size=128, seed=1).visible(64, 256))
    assert not mask.equal(RandomPattern(group_size=128, seed=2).visible(64, 256))
    assert not mask[0].equal(mask[1])
    earlier = mask[:, 128:, :128].unflatten(1, (-1, RandomPattern.block_tokens))
    assert (earlier == earlier[:, :, :1]).all(), "queries of one block see the same earlier keys"
    assert not earlier[:, 0].equal(earlier[:, 1])
    # 2048 draws of one among 32 blocks: 64 each, give or take four standard deviations.
    uses = mask[:, 128:, :128].sum((0, 1)) / 4
    assert uses.min() > 32 and uses.max() < 96


@by_name
def test_ids_that_never_change_are_one_document(name: str) -> None:
    ids = torch.full((2, 19), 7)
    expected = PATTERNS[name].visible(3, 19).expand(2, 3, 19, 19)
    assert PATTERNS[name].visible(3, 19, ids).equal(expected)


@pytest.mark.parametrize(
    "pattern",
    (
        AttentionPattern(4, 2, 0.5),
        AttentionPattern(4, shifted_fraction=0.5, wrapped=True),
        AttentionPattern(2, 4),
        FixedPattern(4),
        RandomPattern(4, block_tokens=2),
    ),
    ids=repr,
)
def test_documents_are_patterns_of_their_own(pattern: Pattern) -> None:
    lengths = ((5, 1, 9, 4), (12, 7))
    # The first row's second document has the first one's id again, further on: equal ids only join in a run.
    ids = torch.tensor([[1] * 5 + [2] + [1] * 9 + [0] * 4, [3] * 12 + [-1] * 7])
    mask = pattern.visible(4, 19, ids)
    for row, parts in enumerate(lengths):
        blocks = [pattern.visible(4, length) for length in parts]
        expected = torch.stack([torch.block_diag(*(block[h] for block in blocks)) for h in range(4)])
        assert mask[row].equal(expected.bool())


def test_a_fraction_is_of_each_document() -> None:
    """Ten tokens have windows of three and six have windows of two, whatever else is in the row."""
    ids = torch.tensor([[0] * 10 + [1] * 6])
    expected = torch.block_diag(AttentionPattern(3).visible(1, 10)[0], AttentionPattern(2).visible(1, 6)[0])
    assert SHORT.visible(1, 16, ids)[0, 0].equal(expected.bool())
    assert SHORT.window_boundaries(10, shifted=False) == [0, 3, 6, 9, 10]


@pytest.mark.parametrize("share", (0.25, 0.125, 0.1, 0.3, 1 / 3, 2 / 3, 5 / 6, 0.001, 1.0))
@pytest.mark.parametrize("kind", (AttentionPattern, StridePattern))
def test_many_lengths_at_once_are_each_length_alone(kind: type[Pattern], share: float) -> None:
    for pattern in (kind(share), *([kind(share, shifted_fraction=0.5)] if kind is AttentionPattern else [])):
        expected = [pattern.group_tokens(length) for length in range(1, 2000)]
        assert pattern.group_tokens(torch.arange(1, 2000)).tolist() == expected


def test_document_spans() -> None:
    starts, lengths = document_spans(torch.tensor([[4, 4, 1, 4], [0, 0, 0, 0]]), 4)
    assert starts.tolist() == [[0, 0, 2, 3], [0, 0, 0, 0]]
    assert lengths.tolist() == [[2, 2, 1, 1], [4, 4, 4, 4]]
    assert [x.tolist() for x in document_spans(torch.tensor([[9]]), 1)] == [[[0]], [[1]]]


@pytest.mark.parametrize("packed", (False, True))
@by_name
def test_mask_mod_is_what_flex_attention_wants(name: str, packed: bool) -> None:
    ids = torch.tensor([[0] * 6 + [1] * 15, [0] * 20 + [1]]) if packed else None
    mask_mod = PATTERNS[name].mask_mod(4, 21, ids)
    mask = create_mask(mask_mod, 2, 4, 21, 21, device="cpu")
    assert mask.equal(PATTERNS[name].visible(4, 21, ids).expand(2, 4, 21, 21))
    one = mask_mod(*(torch.tensor(index) for index in (1, 3, 11, 10)))
    assert one.dtype == torch.bool and one.shape == () and one == mask[1, 3, 11, 10]


@pytest.mark.parametrize("num_tokens", LENGTHS)
@by_name
def test_density_is_the_share_of_visible_pairs(name: str, num_tokens: int) -> None:
    pairs = 3 * num_tokens * (num_tokens + 1) / 2
    assert PATTERNS[name].density(3, num_tokens) == PATTERNS[name].visible(3, num_tokens).sum().item() / pairs


def test_density_counts_long_rows_piece_by_piece() -> None:
    mask = FIXED.visible(2, 3000)
    assert FIXED.density(2, 3000) == mask.sum().item() / (2 * 3000 * 3001 / 2)


@pytest.mark.parametrize("pattern", (FIXED, STRIDE, RANDOM), ids=lambda pattern: pattern.kind)
@pytest.mark.parametrize("num_tokens", (256, 512, 2048))
def test_ablation_patterns_are_as_dense_as_sf(pattern: Pattern, num_tokens: int) -> None:
    assert pattern.density(8, num_tokens) == pytest.approx(SF.density(8, num_tokens), rel=0.03)
    sized, sf = dataclasses.replace(pattern, group_size=num_tokens // 4), AttentionPattern(num_tokens // 4, 4)
    assert sized.density(8, num_tokens) == pytest.approx(sf.density(8, num_tokens), rel=0.03)


@pytest.mark.parametrize(
    ("pattern", "num_tokens", "group"),
    (
        (SHORT, 64, 16),
        (SHORT, 65, 17),
        (S2, 65, 18),
        (S2, 1, 2),
        (SHORT, 1, 1),
        (AttentionPattern(0.1), 30, 3),  # 0.1 * 30 is 3.0000000000000004 in binary
        (AttentionPattern(0.001), 30, 1),
        (AttentionPattern(1e-9), 30, 1),
        (AttentionPattern(1 / 3), 9, 3),
        (AttentionPattern(5 / 6), 6, 5),  # 5/6 is 0.8333333333333334
        (AttentionPattern(0.30001), 100_000, 30_001),
        (AttentionPattern(5), 3, 5),
        (FULL, 77, 77),
    ),
    ids=str,
)
def test_group_tokens(pattern: AttentionPattern, num_tokens: int, group: int) -> None:
    assert pattern.group_tokens(num_tokens) == group


@pytest.mark.parametrize(
    ("shifted", "heads", "count"),
    ((0.5, 8, 4), (0.5, 3, 2), (0.5, 1, 1), (0.25, 2, 1), (0.2, 2, 0), (1, 3, 3)),
)
def test_shifted_heads_round_half_up(shifted: float, heads: int, count: int) -> None:
    assert AttentionPattern(shifted_fraction=shifted).shifted_heads(heads) == count


@pytest.mark.parametrize(
    ("num_tokens", "plain", "shifted", "wrapped"),
    (
        (8, [0, 4, 8], [0, 2, 6, 8], [0, 2, 6, 8]),
        (9, [0, 4, 8, 9], [0, 2, 6, 9], [0, 2, 6, 7, 9]),
        (3, [0, 3], [0, 2, 3], [0, 2, 3]),
        (2, [0, 2], [0, 2], [0, 2]),
        (1, [0, 1], [0, 1], [0, 1]),
    ),
)
def test_window_boundaries(num_tokens: int, plain: list[int], shifted: list[int], wrapped: list[int]) -> None:
    s2, s2_wrapped = (AttentionPattern(4, shifted_fraction=0.5, wrapped=wraps) for wraps in (False, True))
    assert s2.window_boundaries(num_tokens, shifted=False) == plain
    assert s2.window_boundaries(num_tokens, shifted=True) == shifted
    assert s2_wrapped.window_boundaries(num_tokens, shifted=True) == wrapped


def test_the_named_patterns() -> None:
    assert {name: dataclasses.astuple(pattern) for name, pattern in WINDOWED.items()} == {
        "full": (1.0, 0, 0.0, False),
        "short": (0.25, 0, 0.0, False),
        "s2": (0.25, 0, 0.5, False),
        "s2_wrapped": (0.25, 0, 0.5, True),
        "sf": (0.25, 4, 0.0, False),
        "sf_shifted": (0.25, 4, 0.5, False),
    }
    assert all(getattr(patterns, name.upper()) is pattern for name, pattern in PATTERNS.items())


@pytest.mark.parametrize(
    ("arguments", "named"),
    (
        ({"group_size": 0}, "group_size"),
        ({"group_size": -4}, "group_size"),
        ({"group_size": 0.0}, "group_size"),
        ({"group_size": -0.5}, "group_size"),
        ({"group_size": 1.5}, "group_size"),
        ({"group_size": float("nan")}, "group_size"),
        ({"group_size": "4"}, "group_size"),
        ({"group_size": None}, "group_size"),
        ({"group_size": True}, "group_size"),
        ({"group_size": 3, "shifted_fraction": 0.5}, "group_size"),
        ({"sink_tokens": -1}, "sink_tokens"),
        ({"sink_tokens": 1.5}, "sink_tokens"),
        ({"sink_tokens": "4"}, "sink_tokens"),
        ({"shifted_fraction": -0.1}, "shifted_fraction"),
        ({"shifted_fraction": 1.1}, "shifted_fraction"),
        ({"shifted_fraction": float("nan")}, "shifted_fraction"),
        ({"shifted_fraction": "half"}, "shifted_fraction"),
        ({"shifted_fraction": True}, "shifted_fraction"),
        ({"wrapped": 1, "shifted_fraction": 0.5}, "wrapped"),
        ({"wrapped": True}, "wrapped"),
        ({"wrapped": True, "shifted_fraction": 0.5, "sink_tokens": 4}, "wrapped"),
    ),
    ids=str,
)
def test_wrong_values_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}") as error:
        AttentionPattern(**arguments)  # type: ignore[arg-type]
    assert str(arguments[named]) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "arguments", "named"),
    (
        (FixedPattern, {"summary_tokens": -1}, "summary_tokens"),
        (RandomPattern, {"block_tokens": 0}, "block_tokens"),
        (RandomPattern, {"seed": -1}, "seed"),
        (StridePattern, {"group_size": 0}, "group_size"),
    ),
)
def test_wrong_values_of_ablation_patterns(
    kind: type[Pattern], arguments: dict[str, int], named: str
) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        kind(**arguments)


@pytest.mark.parametrize(
    ("heads", "tokens", "ids", "message"),
    (
        (0, 4, None, "num_heads"),
        (2, 0, None, "num_tokens"),
        (2, 4.0, None, "num_tokens"),
        (2, 4, torch.zeros(1, 5, dtype=torch.long), "document_ids"),
        (2, 4, torch.zeros(4, dtype=torch.long), "document_ids"),
        (2, 4, torch.zeros(1, 4), "document_ids must be integers"),
        (2, 4, [[0, 0, 0, 0]], "document_ids"),
    ),
    ids=str,
)
def test_wrong_sizes(heads: int, tokens: int, ids: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        SF.visible(heads, tokens, ids)
    with pytest.raises(ValueError, match=f"^{message}"):
        SF.mask_mod(heads, tokens, ids)


@by_name
def test_dict_survives_json(name: str) -> None:
    stored = json.loads(json.dumps(PATTERNS[name].to_dict()))
    assert pattern_from_dict(stored) == PATTERNS[name]


@pytest.mark.parametrize(
    "pattern", (AttentionPattern(512, 2, 0.25), RandomPattern(64, 8, 3), FixedPattern(0.5, 0))
)
def test_dict_keeps_every_value(pattern: Pattern) -> None:
    restored = pattern_from_dict(json.loads(json.dumps(pattern.to_dict())))
    assert restored == pattern and type(restored) is type(pattern)
    assert type(restored.group_size) is type(pattern.group_size)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"kind": "spiral"}, "kind"),
        ({"sinks": 4}, "sinks"),
        ({"shifted_fraction": None}, "shifted_fraction"),
        ({"shifted": 0.5}, "present and its former name"),
    ),
)
def test_wrong_dicts(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pattern_from_dict(SF.to_dict() | change)


@pytest.mark.parametrize("data", (None, {}, "sf", {key: 1 for key in ("kind", "group_size")}), ids=str)
def test_not_a_pattern_dict(data: object) -> None:
    with pytest.raises(ValueError, match="kind"):
        pattern_from_dict(data)  # type: ignore[arg-type]


def test_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="sink_tokens"):
        pattern_from_dict({"kind": "windows", "group_size": 0.25})


def test_find_pattern() -> None:
    assert find_pattern("sf_shifted") is SF_SHIFTED
    assert find_pattern(SF) is SF
    for wrong in ("SF", "", None, 3):
        with pytest.raises(ValueError, match="sf_shifted"):
            find_pattern(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a name with fields"):
        find_pattern("sf(sink_tokens=8)(group_size=16)")


def test_patterns_are_values() -> None:
    assert AttentionPattern(sink_tokens=4) == SF and hash(AttentionPattern(sink_tokens=4)) == hash(SF)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SF.sink_tokens = 2  # type: ignore[misc]


@pytest.mark.parametrize("packed", (False, True))
@by_name
def test_picture_shows_the_mask(name: str, packed: bool) -> None:
    ids = torch.tensor([[0] * 9 + [1] * 7]) if packed else None
    figure = PATTERNS[name].picture(16, 2, ids)
    mask = PATTERNS[name].visible(2, 16, ids).reshape(2, 16, 16)
    local = PATTERNS[name]
    if isinstance(local, AttentionPattern):
        local = dataclasses.replace(local, sink_tokens=0)
    sinks = mask & ~local.visible(2, 16, ids).reshape(2, 16, 16)
    assert len(figure.axes) == 2
    for head, axes in enumerate(figure.axes):
        [mesh] = [item for item in axes.collections if isinstance(item, QuadMesh)]
        shades = torch.as_tensor(mesh.get_array()).reshape(16, 16)
        assert shades.equal(mask[head].int() * 2 - sinks[head].int())
        hatched = [item for item in axes.collections if item.get_hatch()]
        assert len(hatched) == mask[head].triu(1).sum()


# --- names with fields --------------------------------------------------------------------------------------


def test_a_name_may_give_fields() -> None:
    expected = dataclasses.replace(SF, sink_tokens=8, shifted_fraction=0.25)
    assert find_pattern("sf(sink_tokens=8, shifted_fraction=0.25)") == expected
    assert find_pattern("sf()") == SF
    assert find_pattern("shift_up").to_dict()["kind"] == "rolled"


@pytest.mark.parametrize(
    "name",
    [
        "sf(8)",
        "sf(sinks=8)",
        "sf(sink_tokens=8",
        "sf(sink_tokens=print(1))",
        "sff(sink_tokens=8)",
        "sf(shifted=0.5, shifted_fraction=0.5)",
        "sf(sink_tokens=8, sink_tokens=9)",
    ],
)
def test_wrong_fields_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="sf"):
        find_pattern(name)


# --- names that fields had before ---------------------------------------------------------------------------


def test_former_names_are_read() -> None:
    stored = {"kind": "windows", "group_size": 0.25, "sink_tokens": 4, "shifted": 0.25, "wrapped": False}
    assert pattern_from_dict(stored) == AttentionPattern(0.25, 4, 0.25) == find_pattern("sf(shifted=0.25)")
    assert "shifted" not in AttentionPattern(0.25, 4, 0.25).to_dict()
