"""Bytes sent: the numbers of small cases worked out by hand."""

import pytest
import torch

from helpers import assert_close
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.patterns import FULL, RANDOM, SF, SF_SHIFTED, SHORT, find_pattern
from sinklora.attention.sequence_parallel.shard import SequenceShard
from sinklora.attention.sequence_parallel.traffic import (
    AttentionShape,
    planned_traffic,
    ring_traffic,
    ulysses_traffic,
)
from sinklora.train.spec import TrainSpec

LLAMA = AttentionShape(32, 32, 128)  # one layer of Llama-2-7B in bfloat16
SMALL = AttentionShape(2, 2, 1, 1)  # a token of one head: one byte of keys, one of values


def test_windows_that_end_where_shards_end_need_sinks_alone() -> None:
    """32,768 tokens in four windows over four ranks: rank 0 sends four sinks to three others."""
    found = planned_traffic(LLAMA, SF, 32_768, 4)
    assert_close(found.most, 3 * 4 * 16_384 / 8_192, atol=1e-9)
    assert_close(found.mean, 3 * 4 * 16_384 / 32_768, atol=1e-9)
    assert planned_traffic(LLAMA, SHORT, 32_768, 4).most == 0


def test_windows_over_a_border_send_what_lies_before_it() -> None:
    """Windows of 4 over 3 ranks of 5 tokens, one sink, the second head shifted by two.

    Rank 0 sends the un-shifted head's tokens 0 and 4 and the shifted one's 0, 2, 3, 4 to rank 1, and 0 of
    each to rank 2; rank 1 sends 8 and 9 of the un-shifted head to rank 2.
    """
    found = planned_traffic(SMALL, AttentionPattern(4, 1, 0.5), 15, 3)
    assert_close(found.most, 2 * (2 + 4 + 1 + 1) / 5, atol=1e-9)
    assert_close(found.mean, 2 * (2 + 4 + 1 + 1 + 2) / 15, atol=1e-9)


def test_full_attention_sends_to_all_later_ranks() -> None:
    """Half of what a ring sends on average, as much from the first rank."""
    found, ring = planned_traffic(LLAMA, FULL, 64, 4), ring_traffic(LLAMA, 4)
    assert found.most == ring.most == 3 * 16_384
    assert_close(found.mean, ring.mean / 2, atol=1e-9)


def test_formulas_by_hand() -> None:
    assert ring_traffic(LLAMA, 8).mean == 7 * 2 * 32 * 128 * 2
    assert ulysses_traffic(LLAMA, 8).mean == 4 * 32 * 128 * 2 * 7 / 8
    grouped = AttentionShape(64, 8, 128)  # Llama-2-70B
    assert ring_traffic(grouped, 8).mean == 7 * 2 * 8 * 128 * 2
    assert ulysses_traffic(grouped, 8).mean == (2 * 64 + 2 * 8) * 128 * 2 * 7 / 8
    assert ring_traffic(LLAMA, 1).mean == ulysses_traffic(LLAMA, 1).mean == 0


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_sf_sends_less_than_both(ranks: int) -> None:
    tokens = 1_024 * ranks
    for pattern in (SF, SF_SHIFTED):
        sent = planned_traffic(LLAMA, pattern, tokens, ranks).mean
        assert sent < ring_traffic(LLAMA, ranks).mean
        if ranks != 3:  # which does not divide the heads
            assert sent < ulysses_traffic(LLAMA, ranks).mean


def test_what_has_no_plan_is_named() -> None:
    with pytest.raises(ValueError, match="does not consist of windows"):
        planned_traffic(LLAMA, RANDOM, 64, 2)
    with pytest.raises(ValueError, match="must divide the 8 key/value heads"):
        ulysses_traffic(AttentionShape(64, 8, 128), 16)
    with pytest.raises(ValueError, match="ranks=3 must divide the 8 key/value heads"):
        ulysses_traffic(AttentionShape(64, 8, 128), 3)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("random", "does not consist of windows"), ("shift_up", "moves tokens before or after attention")],
)
def test_patterns_whose_rows_cannot_be_cut_are_refused(pattern: str, words: str) -> None:
    """Rolled patterns have windows, and do more than attend in them."""
    with pytest.raises(ValueError, match=words):
        planned_traffic(LLAMA, find_pattern(pattern), 32_768, 4)
    shard = SequenceShard(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=words):
        shard.layout(find_pattern(pattern), 4, 2)
    with pytest.raises(ValueError, match=f"sequence_parallel=2: pattern='{pattern}': .*{words}"):
        TrainSpec(pattern=pattern, sequence_parallel=2)


def test_ids_that_would_be_taken_for_filling_are_refused() -> None:
    with pytest.raises(ValueError, match="document_ids: has -1; number documents from 0 on"):
        SequenceShard.cut(torch.tensor([[0, 0, -1]]))
