"""One page read by one model: what its caches keep, predict, cost and write."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import (
    POLICIES,
    CachePolicy,
    budget_in_tokens,
    make_policy,
    needed_budget,
)
from sinklora.evaluate.generation_cost import Generation, generate
from sinklora.evaluate.pass_keys import CacheFactory
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import input_device
from sinklora.hf.kept_tokens import kept_mask
from sinklora.hf.rope import forget_longest_input
from sinklora.records.checks import check_choice
from sinklora.reproduction.cache.study import published_policies
from sinklora.reproduction.demo.page import WRITTEN_TOKENS, Page

# So many tokens of the text after the prompt come between two evictions: one each takes ten times as long,
# and hundreds of steps whose threads wait for each other where the machine is busy.
PIECE_TOKENS = 10


@dataclass(frozen=True)
class Reading:
    """What one cache makes of a page: bounded by `policy`, or the model's own, full one (None).

    `losses`: nats of each token after the prompt; `kept` [layers, Hkv, prompt] tells which heads keep what
    of the prompt.
    """

    policy: CachePolicy | None
    losses: NDArray[np.float64]
    kept: NDArray[np.bool_] | None = None

    @property
    def perplexity(self) -> float:
        """Perplexity of the text after the prompt."""
        return float(np.exp(self.losses.mean()))


def check_request(policy: str, budget: str) -> int | float:
    """The budget as a number; ValueError for a policy without one, and for a wrong budget."""
    bounded = [name for name, kind in POLICIES.items() if kind.bounded]
    check_choice("policy", policy, bounded)
    share = needed_budget(budget)
    make_policy(policy, share)
    return share


def compared_policies(policy: str, budget: int | float, prompt_tokens: int) -> list[CachePolicy]:
    """The chosen policy and the published ones, at one budget in tokens, the chosen one first.

    Those that cannot have so small a budget are left out (`left_out`). ValueError where so large a budget
    evicts nothing.
    """
    if budget_in_tokens(budget, prompt_tokens) >= prompt_tokens:
        raise ValueError(
            f"budget={budget!r}: nothing is evicted of a prompt of {prompt_tokens} tokens; give less"
        )
    others = [name for name in published_policies() if name not in left_out(budget)]
    chosen = [make_policy(name, budget) for name in dict.fromkeys((policy, *others))]
    return [each.with_fixed_budget(prompt_tokens) for each in chosen]


def left_out(budget: int | float) -> list[str]:
    """The published policies that so few tokens leave no place beside those that they always keep.

    None for a fraction, of which each policy says how it is split, however small.
    """
    return [name for name in published_policies() if not _can_have(name, budget)]


def _can_have(name: str, budget: int | float) -> bool:
    try:
        make_policy(name, budget)
    except ValueError:
        return False
    return True


def cache_maker(model: PreTrainedModel, policy: CachePolicy | None) -> CacheFactory:
    """What makes an empty cache; without a policy, transformers' own."""
    return DynamicCache if policy is None else partial(BudgetCache, model, policy)


@torch.inference_mode()
def read_page(
    model: PreTrainedModel, page: Page, policy: CachePolicy | None, piece: int = PIECE_TOKENS
) -> Reading:
    """Read the prompt at once, then what comes after it through what the cache has kept, with an eviction
    after each `piece` of so many tokens.
    """
    cache = cache_maker(model, policy)()
    prompt, following = (
        torch.tensor([ids], device=input_device(model)) for ids in (page.prompt.ids, page.continuation)
    )
    forget_longest_input(model)
    first: Tensor = model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    kept = kept_mask(cache, len(page.prompt)) if isinstance(cache, BudgetCache) else None
    others = _logits_after_each(model, following[:, :-1], cache, piece)
    logits = torch.cat([first, others], 1)[0].float()
    losses = functional.cross_entropy(logits, following[0], reduction="none")
    return Reading(policy, losses.double().cpu().numpy(), kept)


def _logits_after_each(model: PreTrainedModel, tokens: Tensor, cache: Cache, piece: int) -> Tensor:
    """What follows each of further tokens [1, N], given in one call: [1, N, vocabulary].

    In pieces of one token that comes to the same as a call for each. A bounded cache has to have its budget
    in tokens: a fraction would be one of the tokens of this call and the prompt's together.
    """
    if isinstance(cache, BudgetCache):
        for layer in cache.budget_layers:
            layer.prefill_chunk = piece
    logits: Tensor = model(tokens, past_key_values=cache, use_cache=True).logits
    return logits


def write_on(model: PreTrainedModel, page: Page, policy: CachePolicy | None) -> Generation:
    """Read the prompt again and write on, greedily, both timed."""
    prompt = torch.tensor([page.prompt.ids], device=input_device(model))
    return generate(model, cache_maker(model, policy), prompt, WRITTEN_TOKENS)
