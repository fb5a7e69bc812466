"""A prompt that a cache has read once, continued in several ways: what the model writes, and how likely it
finds what it might have written.
"""

import copy
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sinklora.evaluate.pass_keys import check_answering
from sinklora.hf.device import input_device
from sinklora.hf.rope import forget_longest_input


class ReadPrompt:
    """A prompt in a cache, with what follows it; every continuation goes on from a copy of the cache.

    The whole prompt is read at once, so that the token after it is predicted before anything is evicted;
    every later one through what the cache has kept. Raises ValueError in training mode and for an empty
    prompt.
    """

    def __init__(self, model: PreTrainedModel, prompt: Sequence[int], cache: Cache) -> None:
        check_answering(model, prompt=len(prompt))
        self._model, self._cache = model, cache
        forget_longest_input(model)
        self._likely = self._forward(torch.tensor([list(prompt)], device=input_device(model)), cache)

    @torch.inference_mode()
    def _forward(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Log-probabilities of what follows the last of `tokens` [B, N], float32 [B, vocabulary]."""
        output: Any = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return torch.log_softmax(output.logits[:, -1].float(), -1)

    @torch.inference_mode()
    def greedy(self, most: int, ends: Container[int] = ()) -> list[int]:
        """At most so many tokens, the likeliest each time, up to the first of `ends`, which is left out."""
        cache, likely = copy.deepcopy(self._cache), self._likely
        forget_longest_input(self._model)
        written: list[int] = []
        while len(written) < most:
            token = int(likely.argmax())
            if token in ends:
                break
            written.append(token)
            if len(written) < most:
                likely = self._forward(torch.tensor([[token]], device=likely.device), cache)
        return written

    @torch.inference_mode()
    def nats(self, continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """Cross-entropy (nats) of every token of every continuation, all continuations in one batch.

        Raises ValueError for an empty one.
        """
        if not continuations or not all(map(len, continuations)):
            raise ValueError("continuations: expected at least one, each of at least one token")
        longest = max(map(len, continuations))
        # One that has ended repeats its last token, which nobody reads.
        rows = [[*c, *[c[-1]] * (longest - len(c))] for c in continuations]
        tokens = torch.tensor(rows, device=self._likely.device)
        cache: Any = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(rows))
        forget_longest_input(self._model)
        likely, chosen = self._likely.expand(len(rows), -1), []
        for place in range(longest):
            if place:
                likely = self._forward(tokens[:, place - 1, None], cache)
            chosen.append(likely.gather(-1, tokens[:, place, None])[:, 0])
        losses = (-torch.stack(chosen, 1)).tolist()
        return [row[: len(c)] for row, c in zip(losses, continuations, strict=True)]


def end_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens that end what a model writes, by its generation settings."""
    config: Any = model.generation_config
    ends = None if config is None else config.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list) else {int(ends)}
