"""What holds for a bounded cache with any policy, without knowing how the policy chooses."""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cache_simulation import run, tokens
from helpers import assert_close
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.hf.budget_cache import BudgetCache

READ = 15  # tokens of the prompt; three are decoded after it
CALLS = [READ, 1, 1, 1]


def check_contract(model: PreTrainedModel, name: str) -> None:
    """A named policy keeps to its budget, evicts nothing early, and does not depend on how it is fed."""
    policy = make_policy(name, 8)
    ids = tokens(3, sum(CALLS))
    logits = _check_budget(model, policy, ids)
    _check_large_budgets(model, make_policy(name, 500), ids)
    for row in range(3):  # rows do not know of each other
        alone = run(BudgetCache(model, policy), model, ids[row : row + 1], CALLS)
        assert_close(alone[0], logits[row], atol=1e-9)
    if policy.sharing.among == "head":  # a piece of a prompt is shared, a decoded token is not
        _check_chunks(model, policy, ids)
    _check_rows_move_with_their_scores(model, policy, ids)
    generated = model.generate(
        ids, past_key_values=BudgetCache(model, policy), num_beams=3, max_new_tokens=4, pad_token_id=0
    )
    assert generated.shape[0] == 3


def _check_budget(model: PreTrainedModel, policy: CachePolicy, ids: Tensor) -> Tensor:
    cache = BudgetCache(model, policy)
    logits = run(cache, model, ids, CALLS)
    recent = max(1, policy.split(READ).recent)
    newest = torch.arange(ids.shape[1] - recent, ids.shape[1])
    found = [cache.kept_positions(layer) for layer in range(len(cache.budget_layers))]
    for row in zip(*(kept.flatten(0, 1) for kept in found), strict=True):
        for kept in row:
            assert (kept[kept >= 0].diff() > 0).all() and torch.isin(newest, kept).all()
    counts = torch.stack([(kept >= 0).sum(-1) for kept in found]).double()  # [layers, B, Hkv]
    alike = {"head": counts, "layer": counts.mean(2), "model": counts.mean((0, 2))}
    assert (alike[policy.sharing.among] == 8).all()
    return logits


def _check_large_budgets(model: PreTrainedModel, policy: CachePolicy, ids: Tensor) -> None:
    with torch.no_grad():
        expected = model(ids, past_key_values=DynamicCache()).logits
    assert_close(run(BudgetCache(model, policy), model, ids, CALLS), expected, atol=1e-9)


def _check_chunks(model: PreTrainedModel, policy: CachePolicy, ids: Tensor) -> None:
    chunked = BudgetCache(model, policy, prefill_chunk=1)
    decoded = BudgetCache(model, policy)
    assert_close(run(chunked, model, ids, CALLS), run(decoded, model, ids, [1] * ids.shape[1]), atol=1e-9)
    for layer in range(len(chunked.budget_layers)):
        assert chunked.kept_positions(layer).tolist() == decoded.kept_positions(layer).tolist()


@torch.no_grad()
def _check_rows_move_with_their_scores(model: PreTrainedModel, policy: CachePolicy, ids: Tensor) -> None:
    lengths, chosen = [READ, 4, 11], [2, 1, 0, 1]
    mask = (torch.arange(READ) >= READ - torch.tensor(lengths)[:, None]).long()
    cache = BudgetCache(model, policy)
    model(
        ids[:, :READ] * mask,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
    )
    cache.reorder_cache(torch.tensor([2, 1, 0]))
    cache.batch_select_indices(torch.tensor([0, 1, 2, 1]))
    for at in range(READ, ids.shape[1]):
        places = torch.tensor([lengths[row] + at - READ for row in chosen])[:, None]
        logits = model(ids[chosen, at : at + 1], position_ids=places, past_key_values=cache).logits[:, -1]
    for row, length in enumerate(lengths):
        alone = BudgetCache(model, policy)
        own = torch.cat([ids[row, READ - length : READ], ids[row, READ:]])[None]
        expected = run(alone, model, own, [length, 1, 1, 1])[0, -1]
        for place in (i for i, picked in enumerate(chosen) if picked == row):
            assert_close(logits[place], expected, atol=1e-9)
            kept, alone_kept = cache.kept_positions(0)[place], alone.kept_positions(0)[0]
            assert kept[:, : alone_kept.shape[1]].tolist() == alone_kept.tolist()
