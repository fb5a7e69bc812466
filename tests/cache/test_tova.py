"""TOVA's scores against its paper's definition, written out densely."""

import torch

from cache_simulation import run, tokens
from helpers import assert_close
from sinklora.cache.scores import NewToken, NewTokens
from sinklora.cache.tova import TOVA
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import tiny_model


def test_scores_are_the_mean_over_all_heads_of_the_last_query() -> None:
    generator = torch.Generator().manual_seed(4)
    query, key = (torch.randn(2, heads, 9, 8, generator=generator).double() for heads in (6, 2))
    positions = torch.arange(9).expand(2, 2, -1)
    scorer = TOVA(4).make_scorer(key.new_empty(2, 2, 0))
    scorer.extend(NewTokens(query, key, key, positions, 0, [9, 9], [0, 0], 0.4, complete=True), None)
    for row in range(2):
        logits = torch.stack([0.4 * key[row, head // 3] @ query[row, head, -1] for head in range(6)])
        expected = logits.softmax(-1).mean(0)
        assert_close(scorer.state["scores"][row], expected.expand(2, -1), atol=1e-12)


def test_a_decoded_token_replaces_scores() -> None:
    weights = torch.rand(3, 2, 2, 4, 5)  # [layers, B, Hkv, groups, used]
    scores = torch.full((3, 2, 2, 7), 9.0)
    TOVA(6).make_scorer(scores[0]).step({"scores": scores}, NewToken(5, 5, weights))
    for layer in range(3):
        for row in range(2):
            expected = weights[layer, row].flatten(0, 1).mean(0)
            assert_close(scores[layer, row, :, :5], expected.expand(2, -1), atol=1e-6)
    assert (scores[..., 5:] == 9).all()  # of free slots


def test_all_heads_of_a_layer_keep_the_same_tokens() -> None:
    model = tiny_model("llama-gqa")
    cache = BudgetCache(model, TOVA(6))
    for calls in ([14], [1] * 5, [4]):
        run(cache, model, tokens(3, sum(calls), seed=sum(calls)), calls)
        kept = [cache.kept_positions(layer) for layer in range(2)]
        assert all(torch.equal(mine[:, 0], mine[:, 1]) for mine in kept)
        assert not torch.equal(*kept)
