"""A rival of Replay that reads twice, after KVzip (arXiv 2505.23416): what the model looks at while it
repeats its context stays. For measurements alone: it costs two more passes over every prompt.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.cache.policies import CachePolicy, Sharing, Split, budget_in_tokens, in_tokens, split_with_sinks
from sinklora.cache.prompt_scores import PromptScores
from sinklora.cache.scored_attention import blocks, precise
from sinklora.cache.scores import NewTokens, Scorer
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.rope import forget_longest_input


@dataclass(frozen=True)
class SecondPass(CachePolicy):
    """The tokens that the model looks at most while it reads `instruction` and its prompt once more.

    A token's score is the largest share of attention that it gets from a query of that, or of a grouped head,
    in a softmax over all before the query (KVzip's own score); the heads of all layers compete for slots.
    Ours: the prompt is repeated at once, not in chunks of 2048 tokens; the first `sink_tokens` and
    `recent_share` of the budget for the newest stay, so that what is written afterwards has room; tokens of
    later turns stay. Only a `SecondPassCache` has the scores.
    """

    sink_tokens: int = 4
    recent_share: float = 0.1
    instruction: str = "\n\nRepeat the previous context exactly.\n\n"

    def split(self, prompt_tokens: int) -> Split:
        total = budget_in_tokens(self.budget, prompt_tokens)
        recent = in_tokens(self.recent_share, total)
        return split_with_sinks(self.sink_tokens, total - recent, recent)

    @property
    def sharing(self) -> Sharing:
        return Sharing("model", 0.0)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return _GivenScores(empty)


class _GivenScores(PromptScores):
    """Scores that the cache replaces at the prompt's end; of later turns' tokens the highest there is, 1."""

    def scored(self, new: NewTokens) -> Tensor:
        return F.pad(self.state["scores"][..., : new.used], (0, new.query.shape[2]), value=1.0)


@dataclass(frozen=True)
class _Recording(CachePolicy):
    """Keeps all tokens, and scores the first `prompt` of them by the attention of the others."""

    prompt: int = 1

    def split(self, prompt_tokens: int) -> Split:
        return Split(0, prompt_tokens, 0)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return _RecordedScores(self.prompt, empty)


class _RecordedScores(PromptScores):
    def __init__(self, prompt: int, empty: Tensor) -> None:
        super().__init__(empty)
        self.prompt = prompt

    def scored(self, new: NewTokens) -> Tensor:
        later = new.query[:, :, self.prompt :]
        maxima = later_maxima(later, new.keys, self.prompt, new.scale)
        return F.pad(maxima, (0, new.keys.shape[2] - self.prompt))


def later_maxima(query: Tensor, key: Tensor, columns: int, scale: float) -> Tensor:
    """The largest share of attention that each of the first `columns` keys gets from a query or grouped head.

    `query` [B, H, Q, D] of the last Q of `key` [B, Hkv, L, D], causal -> [B, Hkv, columns] in float32
    (float64 for float64). Not differentiable.
    """
    kv_heads, length = key.shape[1:3]
    queries = query.shape[2]
    grouped = query.unflatten(1, (kv_heads, -1))
    groups = grouped.shape[2]
    maxima = torch.zeros(len(key), kv_heads, columns, dtype=precise(query.dtype), device=query.device)
    places = torch.arange(length, device=query.device)
    for row, part, begin, end in blocks(key, queries, groups):
        block = grouped[row, part, :, begin:end].to(maxima.dtype) * scale
        scores = block @ key[row, part, None].to(maxima.dtype).mT
        last = places[length - queries + begin : length - queries + end, None]
        scores.masked_fill_(places > last, -torch.inf)
        shares = scores.softmax(-1)[..., :columns].amax((1, 2))
        maxima[row, part] = torch.maximum(maxima[row, part], shares)
    return maxima


class SecondPassCache(BudgetCache):
    """A `BudgetCache` under `SecondPass`: its first prompt, of rows without padding, is read once more.

    The model has to be called with `input_ids` by name. Raises ValueError where it is not, and for padding.
    """

    def __init__(
        self, model: PreTrainedModel, policy: SecondPass, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        super().__init__(model, policy, probe=False)
        self._model = weakref.ref(model)
        self._prompt: Tensor | None = None
        self._instruction = list(tokenizer(policy.instruction, add_special_tokens=False)["input_ids"])

    def begin_call(self, model: PreTrainedModel, options: Mapping[str, Any]) -> None:
        """Note the prompt."""
        super().begin_call(model, options)
        if self.get_seq_length():
            return
        mask = options.get("attention_mask")
        if options.get("input_ids") is None or (mask is not None and not mask.all()):
            raise ValueError("a second pass needs input_ids, given by name, of rows without padding")
        self._prompt = options["input_ids"]

    def end_call(self) -> None:
        """Read the prompt once more, before what does not fit is evicted."""
        if self._prompt is not None:
            prompt, self._prompt = self._prompt, None
            if self.budget_layers[0].awaits_sharing:
                for layer, scores in zip(self.budget_layers, self._read_again(prompt), strict=True):
                    assert layer.scorer is not None
                    layer.scorer.state["scores"] = scores
        super().end_call()

    @torch.no_grad()
    def _read_again(self, prompt: Tensor) -> list[Tensor]:
        """The scores of a prompt [B, N] for each layer, [B, Hkv, N]."""
        model, (rows, columns) = self._model(), prompt.shape
        assert model is not None
        between = prompt.new_tensor(self._instruction).expand(rows, -1)
        recorded = BudgetCache(model, _Recording(1.0, columns), probe=False)
        forget_longest_input(model)
        ids = torch.cat([prompt, between, prompt], 1)
        model(ids, past_key_values=recorded, use_cache=True, logits_to_keep=1)
        forget_longest_input(model)
        scorers = (layer.scorer for layer in recorded.budget_layers)
        return [scorer.state["scores"][..., :columns] for scorer in scorers if scorer is not None]


def cache_for(model: PreTrainedModel, policy: CachePolicy, tokenizer: PreTrainedTokenizerBase) -> BudgetCache:
    """A fresh cache under any policy, `SecondPass` too."""
    if isinstance(policy, SecondPass):
        return SecondPassCache(model, policy, tokenizer)
    return BudgetCache(model, policy)
