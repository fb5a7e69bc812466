"""A document with the tokens marked that a cache has kept, as HTML in which nothing of it is markup."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sinklora.chat.documents import Document, DocumentError
from sinklora.chat.engine import Conversation
from sinklora.hf.kept_tokens import kept_mask
from sinklora.hf.template_pieces import plain_pieces
from sinklora.hf.token_text import TokenPieces

SHADES = 8  # from kept by nobody to kept by all
ALL_LAYERS = 0  # the slider's place for all of them together; the first layer is at 1
CHARACTERS_A_TOKEN = 16  # a text of more than so many for each allowed token is not tokenized to count them


@dataclass(frozen=True)
class MarkedText:
    """The pieces of a document's tokens, and which heads keep each: `kept` [layers, Hkv, tokens]."""

    pieces: tuple[str, ...]
    kept: NDArray[np.bool_]

    def html(self, layer: int = ALL_LAYERS) -> str:
        """The document for one layer (from 1), or all: spans of classes k0 to k8, the text escaped."""
        layers = self.kept if layer == ALL_LAYERS else self.kept[layer - 1 : layer]
        share = layers.mean((0, 1))
        # Who is kept by anybody is told from who is kept by nobody.
        shades = np.ceil(share * SHADES).astype(int).tolist()
        parts = []
        for shade, group in groupby(zip(shades, self.pieces, strict=True), key=lambda pair: pair[0]):
            text = "".join(piece for _, piece in group)
            parts.append(f'<span class="k{shade}">{escaped(text)}</span>')
        return "".join(parts)

    def legend(self, layer: int = ALL_LAYERS) -> str:
        """What the marks say, in a sentence."""
        layers = self.kept if layer == ALL_LAYERS else self.kept[layer - 1 : layer]
        where = (
            f"all {len(self.kept)} layers" if layer == ALL_LAYERS else f"layer {layer} of {len(self.kept)}"
        )
        heads = layers.shape[0] * layers.shape[1]
        tokens = layers.sum(-1).mean()
        return (
            f"The darker, the more of the {heads} heads of {where} keep it: {tokens:.0f} of "
            f"{len(self.pieces)} tokens each, on average."
        )


def escaped(text: str) -> str:
    """A text in which nothing is markup, nor a place for a value of the page's templates."""
    return escape(text).replace("$", "&#36;").replace("{", "&#123;").replace("`", "&#96;")


def document_pieces(tokenizer: PreTrainedTokenizerBase, document: Document, most_tokens: int) -> TokenPieces:
    """The tokens of a document as a conversation reads them.

    Raises DocumentError for more than `most_tokens`, ValueError for a tokenizer that does not say where its
    tokens stand.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r}: does not say where its tokens stand in a text; give "
            "a model with a fast tokenizer"
        )
    advice = f"at most {most_tokens} tokens are read here; cut it"
    if len(document.text) > CHARACTERS_A_TOKEN * most_tokens:
        raise DocumentError(f"document={document.name!r}: has {len(document.text)} characters, {advice}")
    pieces = plain_pieces(tokenizer, document.text)
    if len(pieces) > most_tokens:
        raise DocumentError(f"document={document.name!r}: has {len(pieces)} tokens, {advice}")
    return pieces


def marked_text(conversation: Conversation, pieces: TokenPieces) -> MarkedText:
    """What a conversation's cache keeps of the document that it has read, whose tokens are `pieces`."""
    assert conversation.cache is not None
    begin = len(conversation.template.before_document())
    end = begin + len(pieces)
    return MarkedText(pieces.pieces, kept_mask(conversation.cache, end)[..., begin:end])
