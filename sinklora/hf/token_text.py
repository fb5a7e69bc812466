"""A text as its tokens, each with the piece of the text that it stands for."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenPieces:
    """Token ids and, for each, its piece of the text; the pieces follow each other without a gap.

    A blank belongs to the token after it. Of several tokens that make one character together the first has
    it, and the others have empty pieces, as marks of beginning and end have.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "TokenPieces":
        return TokenPieces(self.ids[part], self.pieces[part])


def token_pieces(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> TokenPieces:
    """The tokens of a text as a model would be given them; `options` go to the tokenizer.

    They are not decoded one by one: a character that takes several tokens would come out as none.
    """
    encoded: Any = tokenizer(text, return_offsets_mapping=True, **options)
    pieces, end = [], 0
    for _, stop in encoded["offset_mapping"]:
        pieces.append(text[end:stop])
        end = max(end, stop)
    return TokenPieces(tuple(encoded["input_ids"]), tuple(pieces))
