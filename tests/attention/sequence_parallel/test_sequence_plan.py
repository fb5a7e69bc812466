"""The plan of an exchange against the dense mask: what a rank sees is local or received, no more is sent."""

import pytest
import torch
from torch import Tensor

from helpers import every_pair
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.patterns import FULL, S2, S2_WRAPPED, SF, SF_SHIFTED, SHORT
from sinklora.attention.sequence_parallel.plan import HeadGroup, SequencePlan

PATTERNS = {
    "sf": SF,
    "sf_shifted": SF_SHIFTED,
    "short": SHORT,
    "s2": S2,
    "s2_wrapped": S2_WRAPPED,
    "full": FULL,
    "group does not divide a shard": AttentionPattern(5, 3),
    "windows longer than a shard": AttentionPattern(14, 2, 0.5),
    "windows shorter than sinks": AttentionPattern(2, 5, 0.5),
    "more sinks than a shard": AttentionPattern(4, 9),
}
HEADS = ((4, 4), (4, 2), (6, 2), (4, 1), (3, 1), (1, 1))


def documents(num_tokens: int, packed: bool) -> Tensor:
    ids = torch.zeros(2, num_tokens, dtype=torch.long)
    return torch.randint(0, 2, (2, num_tokens)).cumsum(1) // 3 if packed else ids


@pytest.mark.parametrize(
    ("name", "heads", "ranks", "shard", "packed"),
    every_pair(PATTERNS, HEADS, (1, 2, 3, 4), (1, 6, 7), (False, True)),
    ids=str,
)
def test_a_rank_holds_what_its_queries_see(
    name: str, heads: tuple[int, int], ranks: int, shard: int, packed: bool
) -> None:
    pattern, ids, ratio = PATTERNS[name], documents(ranks * shard, packed), heads[0] // heads[1]
    plan = SequencePlan(pattern, ranks, *heads, ids)
    visible = pattern.visible(heads[0], ranks * shard, ids).expand(2, -1, -1, -1)
    assert [h for group in plan.groups for h in range(group.first, group.last)] == list(range(heads[1]))
    for rank in range(ranks):
        own = slice(rank * shard, (rank + 1) * shard)
        for route in plan.routes(rank):
            queries = slice(route.group.first * ratio, route.group.last * ratio)
            seen = visible[:, queries, own].any(1).any(1)  # [B, N]
            seen[:, own] = True
            assert route.tokens.tolist() == seen.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("name", PATTERNS)
def test_what_one_sends_the_other_receives(name: str) -> None:
    plan = SequencePlan(PATTERNS[name], 3, 4, 2, documents(21, packed=True))
    routes = [plan.routes(rank) for rank in range(3)]
    for source, target in ((s, t) for s in range(3) for t in range(3)):
        for there, here in zip(routes[source], routes[target], strict=True):
            sent = plan.own(source)[there.sent[target]]
            assert sent.tolist() == here.tokens[here.received[source]].tolist()
            assert source != target or not len(sent)


def test_by_hand() -> None:
    """Windows of 4, shifted ones from 2 on, one sink, three ranks of 5 tokens."""
    plan = SequencePlan(AttentionPattern(4, 1, 0.5), 3, 2, 2, torch.zeros(1, 15, dtype=torch.long))
    assert plan.groups == (HeadGroup(0, 1, (False,)), HeadGroup(1, 2, (True,)))
    plain, shifted = plan.routes(1)  # the tokens 5 to 9
    assert plain.tokens.tolist() == [0, 4, 5, 6, 7, 8, 9]
    assert shifted.tokens.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    plain, shifted = plan.routes(2)  # the tokens 10 to 14
    assert plain.tokens.tolist() == [0, 8, 9, 10, 11, 12, 13, 14]
    assert shifted.tokens.tolist() == [0, 10, 11, 12, 13, 14]
    assert [rows.tolist() for rows in plan.routes(0)[1].sent] == [[], [0, 2, 3, 4], [0]]


def test_full_attention_gathers_all_earlier_keys_and_nothing_else() -> None:
    plan = SequencePlan(FULL, 4, 2, 1, torch.zeros(1, 12, dtype=torch.long))
    assert [len(plan.routes(rank)[0].tokens) for rank in range(4)] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("ranks", "heads", "tokens", "words"),
    [(3, (2, 2), 10, "multiple of ranks=3"), (2, (3, 2), 10, "kv_heads=2"), (0, (2, 2), 10, "ranks")],
)
def test_what_cannot_be_cut_is_named(ranks: int, heads: tuple[int, int], tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SequencePlan(SF, ranks, *heads, torch.zeros(1, tokens, dtype=torch.long))
