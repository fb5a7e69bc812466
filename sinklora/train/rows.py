"""Rows of tokens as training takes them: packed documents, retrieval documents, and mixtures of both."""

import random
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from sinklora.records.checks import check_counts, check_value
from sinklora.train.retrieval_documents import fitted_pass_key, key_value_document
from sinklora.train.tokens import TokenizedCorpus


class PackedRows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Documents laid end to end and cut into rows of `context` tokens; the last, shorter row is left out.

    A row is `input_ids` and `labels` (int64 [context]); with `separate_documents` also
    `position_ids` that restart at 0 where a document starts, which keeps attention inside each document.
    The first token of a document is no label there: nothing precedes it.
    """

    def __init__(self, corpus: TokenizedCorpus, context: int, *, separate_documents: bool = False) -> None:
        check_counts(2, context=context)
        if len(corpus.tokens) < context:
            raise ValueError(
                f"context={context}: the corpus has only {len(corpus.tokens)} tokens; "
                "take more documents or a shorter context"
            )
        self.corpus, self.context, self.separate_documents = corpus, context, separate_documents

    def __len__(self) -> int:
        return len(self.corpus.tokens) // self.context

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.context
        ids = torch.from_numpy(self.corpus.tokens[first : first + self.context].astype(np.int64))
        row = {"input_ids": ids, "labels": ids.clone()}
        return _separated(row, self._positions(first)) if self.separate_documents else row

    def _positions(self, first: int) -> torch.Tensor:
        index = np.arange(first, first + self.context)
        starts = self.corpus.starts
        start_of = starts[np.searchsorted(starts, index, side="right") - 1]
        return torch.from_numpy(index - np.maximum(start_of, first))


def _separated(row: dict[str, torch.Tensor], positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """A row whose documents begin where `positions` are 0; nothing precedes what stands there."""
    return row | {"position_ids": positions, "labels": row["labels"].masked_fill(positions == 0, -100)}


class NeedleRows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of `context` tokens made of retrieval documents, each after a BOS, each row from its own seed.

    Half the rows are one long pass-key document and shorter ones after it, half are key-value documents.
    With `separate_documents` they are separate as in `PackedRows`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        rows: int,
        seed: int,
        *,
        separate_documents: bool = False,
    ) -> None:
        self.tokenizer, self.context, self.rows, self.seed = tokenizer, context, rows, seed
        self.separate_documents = separate_documents

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.rows:
            raise IndexError(index)
        rng = random.Random(f"{self.seed}/{index}")
        ids: list[int] = []
        positions: list[int] = []
        while len(ids) < self.context:
            left = self.context - len(ids) - 1
            document = self._document(rng, left, pass_key=index % 2 == 0)
            ids += [self.tokenizer.bos_token_id, *document]
            positions += range(1 + len(document))
        ids_of_row = torch.tensor(ids[: self.context])
        row = {"input_ids": ids_of_row, "labels": ids_of_row.clone()}
        return _separated(row, torch.tensor(positions[: self.context])) if self.separate_documents else row

    def _document(self, rng: random.Random, left: int, pass_key: bool) -> list[int]:
        document = self._pass_key(rng, left) if pass_key and left >= 96 else None
        if document is None:
            document = key_value_document(rng, rng.randint(2, 8))
        return self.tokenizer(document, add_special_tokens=False)["input_ids"]

    def _pass_key(self, rng: random.Random, left: int) -> str | None:
        """A pass-key document; None where the tokens drawn for it are too few for this tokenizer."""
        tokens, depth = rng.randint(96, left), rng.random()
        try:
            return fitted_pass_key(rng, self._count, tokens, depth).text
        except ValueError:
            return None

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class MixedRows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """`share` of the rows from `rare`, evenly spaced between those of `common`.

    Raises ValueError where `rare` holds fewer than `rare_rows`.
    """

    def __init__(
        self,
        common: torch.utils.data.Dataset[dict[str, torch.Tensor]],
        rare: torch.utils.data.Dataset[dict[str, torch.Tensor]],
        share: float,
    ) -> None:
        check_value("share", share, Annotated[float, Field(gt=0, lt=1)])
        self.common, self.rare, self.share = common, rare, share
        count, there = len(common), len(rare)  # type: ignore[arg-type]
        self.rows, needed = mixed_rows(count, share), rare_rows(count, share)
        if there < needed:
            raise ValueError(f"share={share}: {needed} rare rows go with {count} others, there are {there}")

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        before, upto = int(index * self.share), int((index + 1) * self.share)
        return self.rare[before] if upto > before else self.common[index - before]


def mixed_rows(common: int, share: float) -> int:
    """How many rows there are of which `share` are rare, where `common` are there of the others."""
    rows = int(common / (1 - share))
    while rows - int(rows * share) > common:  # 0.29 of 100 rows are 28.999999999999996
        rows -= 1
    return rows


def rare_rows(common: int, share: float) -> int:
    """How many of them are rare: of a share above a half more than the others are."""
    return int(mixed_rows(common, share) * share)
