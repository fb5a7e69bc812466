"""A text that a reader gives, with the attention of a model on it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.hf.cache_positions import trained_length
from sinklora.hf.model_names import check_model_name
from sinklora.hf.token_text import TokenPieces, token_pieces
from sinklora.pretrained.loading import load
from sinklora.records.checks import check_counts
from sinklora.reproduction.demo.page import page_text
from sinklora.reproduction.names import model_title
from sinklora.reproduction.patterns.study import attention_maps

LEAST_TOKENS = 16


@dataclass(frozen=True)
class OwnText:
    """The first tokens of a text, and the attention of all of a model's heads on them.

    `maps` [layers, H, N, N]: the weights in float32.
    """

    title: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenPieces
    maps: Tensor

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return len(self.maps)

    @property
    def heads(self) -> int:
        """How many query heads each of them has."""
        return self.maps.shape[1]

    def spread_maps(self, rows: int = 3, columns: int = 4) -> dict[tuple[int, int], Tensor]:
        """The maps [N, N] of some layers and heads, spread evenly, by (layer, head)."""
        layers, heads = _spread(rows, self.layers), _spread(columns, self.heads)
        return {(layer, head): self.maps[layer, head] for layer in layers for head in heads}

    def received(self, kv_heads: int) -> Tensor:
        """The attention that each token has received from all queries, which is H2O's score:
        [layers, kv_heads, N]; the query heads that share a key/value head are summed.
        """
        by_head = self.maps.sum(2)
        return by_head.reshape(self.layers, kv_heads, -1, by_head.shape[-1]).sum(2)


def look_at(base: str, text: str = "", tokens: int = 256) -> OwnText:
    """Read the first `tokens` tokens of a text with a model, in float32.

    "" stands for the beginning of Alice's Adventures in Wonderland. Memory: 4 bytes for each layer, head and
    pair of tokens. Raises ValueError for a base that is no model, and for a text that is too short or longer
    than the model was trained for.
    """
    check_counts(tokens=tokens, least=LEAST_TOKENS)
    check_model_name(base, "base")
    model, tokenizer = load(base, dtype=torch.float32)
    longest = trained_length(model.config)
    if longest is not None and tokens > longest:
        raise ValueError(f"tokens={tokens}: {base} was trained for {longest}; give fewer")
    read = token_pieces(tokenizer, text or page_text())[:tokens]
    if len(read) < LEAST_TOKENS:
        raise ValueError(f"text: has {len(read)} tokens; give one of {LEAST_TOKENS} or more")
    return OwnText(model_title(base), model, tokenizer, read, attention_maps(model, read.ids).cpu())


def _spread(count: int, of: int) -> list[int]:
    """At most so many numbers below `of`, the first and the last among them."""
    return sorted({round(number * (of - 1) / max(1, count - 1)) for number in range(min(count, of))})
