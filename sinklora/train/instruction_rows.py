"""From examples to rows of tokens: answers are labels, no example sees another one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sinklora.train.array_cache import kept_arrays
from sinklora.train.conversations import ConversationTemplate, Message, Piece
from sinklora.train.examples import Example, content_hash
from sinklora.train.linear_cross_entropy import IGNORED
from sinklora.train.tokens import default_cache, starts_of, token_dtype, tokenizer_hash

LEAST_PROMPT = 16  # tokens of a prompt that are left of it, where it had as many

TRAINED = ("answer", "end")


@dataclass(frozen=True)
class TokenizedExamples:
    """Tokens of all examples end to end, whether each is a label, and where each example starts.

    Memory-mapped. `truncated` have lost the middle of a prompt, `dropped` are not among them.
    """

    tokens: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    truncated: int
    dropped: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return np.diff(self.starts, append=len(self.tokens)).tolist()


def tokenize_examples(
    examples: Sequence[Example],
    template: ConversationTemplate,
    *,
    context: int,
    long_examples: str,
    cache: Path | None = None,
    progress: bool = True,
) -> TokenizedExamples:
    """Tokens of examples by a template, those of more than `context` tokens treated as `long_examples` says.

    "error" raises ValueError; "drop" leaves them out; "truncate-middle" takes out the middle of the longest
    prompt. Answers are never cut: an example whose answers leave no room for LEAST_PROMPT tokens of each
    prompt is left out. Made once: later calls read the memory-mapped cache. Raises ValueError naming an
    example's place where it is no conversation, and where none is left.
    """
    written = template_record(examples, template)
    made_of = [content_hash(examples), tokenizer_hash(template.tokenizer), written, context]
    key = hashlib.sha256(repr([*made_of, long_examples]).encode()).hexdigest()[:24]
    kept = kept_arrays(
        (cache or default_cache()) / f"examples-{key}",
        lambda: _arrays(examples, template, context, long_examples, progress),
    )
    truncated, dropped = kept["counts"].tolist()
    return TokenizedExamples(kept["tokens"], kept["labels"], kept["starts"], truncated, dropped)


def template_record(examples: Sequence[Example], template: ConversationTemplate) -> str:
    """What the template writes around conversations such as these: what tokens and runs are known by.

    Around a message of the system only where one begins with it: not every template takes them.
    """
    with_system = next((e for e in examples if e.turns and e.turns[0][0] == "system"), None)
    if with_system is None:
        return template.record()
    _pieces(with_system, template)  # refused here, an example is named with its place
    return template.record(system=True)


def _arrays(
    examples: Sequence[Example],
    template: ConversationTemplate,
    context: int,
    long_examples: str,
    progress: bool,
) -> dict[str, np.ndarray]:
    tokens: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    beyond: list[tuple[int, str]] = []
    truncated = 0
    for example in tqdm(examples, desc="tokenizing", unit="example", disable=not progress):
        pieces = _pieces(example, template)
        length = sum(len(piece.ids) for piece in pieces)
        if length > context:
            beyond.append((length, example.place))
            shortened = without_middle(pieces, context) if long_examples == "truncate-middle" else None
            if shortened is None:
                continue
            truncated, pieces = truncated + 1, shortened
        ids = [token for piece in pieces for token in piece.ids]
        tokens.append(np.asarray(ids, dtype=token_dtype(template.tokenizer)))
        labels.append(np.repeat([piece.kind in TRAINED for piece in pieces], [len(p.ids) for p in pieces]))
    if beyond and long_examples == "error":
        length, place = max(beyond)
        raise ValueError(
            f"context={context}: {len(beyond)} of {len(examples)} examples are longer, the longest ({place}) "
            f"has {length} tokens; set long_examples to truncate-middle or drop, or take a longer context"
        )
    if not tokens:
        raise ValueError(f"context={context}: no example is left, all {len(examples)} are longer")
    counts = np.array([truncated, len(beyond) - truncated], dtype=np.int64)
    joined = {"tokens": np.concatenate(tokens), "labels": np.concatenate(labels)}
    return {**joined, "starts": starts_of(tokens), "counts": counts}


def _pieces(example: Example, template: ConversationTemplate) -> list[Piece]:
    try:
        return template.pieces([Message(role, content) for role, content in example.turns])
    except ValueError as error:
        raise ValueError(f"{example.place}: {error}") from error


def without_middle(pieces: Sequence[Piece], context: int) -> list[Piece] | None:
    """A conversation of `context` tokens: the middle of its longest prompt left out, then of the next.

    LEAST_PROMPT tokens of each prompt stay, and all else does; None where there is no room for that.
    """
    shortened = list(pieces)
    excess = sum(len(piece.ids) for piece in pieces) - context
    prompts = [number for number, piece in enumerate(pieces) if piece.kind == "prompt"]
    for number in sorted(prompts, key=lambda n: -len(pieces[n].ids)):
        ids = pieces[number].ids
        left = max(len(ids) - excess, min(len(ids), LEAST_PROMPT))
        excess -= len(ids) - left
        tail = left // 2
        shortened[number] = Piece("prompt", [*ids[: left - tail], *ids[len(ids) - tail :]])
        if excess <= 0:
            return shortened
    return None


class ExampleRows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows of one or more examples each (`rows`: their indices), of unequal lengths.

    A row is `input_ids`, `labels` (-100 but for answers) and `position_ids` that restart at 0 where an
    example starts, which keeps windows and sinks inside it; all int64 [tokens].
    """

    def __init__(self, examples: TokenizedExamples, rows: Sequence[Sequence[int]]) -> None:
        self.examples, self.rows = examples, rows
        self._ends = np.append(examples.starts[1:], len(examples.tokens))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        spans = [slice(self.examples.starts[i], self._ends[i]) for i in self.rows[index]]
        ids = np.concatenate([self.examples.tokens[span] for span in spans]).astype(np.int64)
        counted = np.concatenate([self.examples.labels[span] for span in spans])
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(np.where(counted, ids, IGNORED)),
            "position_ids": torch.cat([torch.arange(int(span.stop - span.start)) for span in spans]),
        }


def ragged_batch(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of unequal lengths as one batch, as long as its longest.

    What fills the others is an example of its own, without labels, so that no mask is needed.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(row: dict[str, Tensor]) -> dict[str, Tensor]:
        count = longest - len(row["input_ids"])
        ends = {
            "input_ids": torch.zeros(count, dtype=torch.int64),
            "labels": torch.full((count,), IGNORED),
            "position_ids": torch.arange(count),
        }
        return {name: torch.cat([row[name], end]) for name, end in ends.items()}

    whole = [filled(row) for row in rows]
    return {name: torch.stack([row[name] for row in whole]) for name in whole[0]}
