"""How long examples are: words, and tokens of a tokenizer, by what is asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERCENTILES = {"5 %": 0.05, "median": 0.5, "95 %": 0.95}

BATCH = 64


def with_lengths(
    examples: pd.DataFrame, tokenizer: "PreTrainedTokenizerBase | None" = None, *, progress: bool = True
) -> pd.DataFrame:
    """Examples with the columns `instruction_words` and `output_words`, and with a tokenizer
    `instruction_tokens` and `output_tokens`, without special tokens.
    """
    counted = examples.copy()
    for name in ("instruction", "output"):
        texts = examples[name].tolist()
        counted[f"{name}_words"] = [len(text.split()) for text in texts]
        if tokenizer is not None:
            counted[f"{name}_tokens"] = _tokens(texts, tokenizer, name, progress)
    return counted


def _tokens(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", name: str, progress: bool
) -> list[int]:
    lengths: list[int] = []
    for first in tqdm(range(0, len(texts), BATCH), desc=f"tokens of {name}s", disable=not progress):
        batch = list(texts[first : first + BATCH])
        encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        lengths += [len(ids) for ids in encoded]
    return lengths


def length_table(examples: pd.DataFrame) -> pd.DataFrame:
    """A line for each kind, in the order in which they come, and one for all: how many there are, their share
    in per cent, and percentiles of the lengths that `with_lengths` counted.
    """
    unit = "tokens" if "instruction_tokens" in examples else "words"
    groups = [(kind, examples[examples.kind == kind]) for kind in examples.kind.unique()]
    lines = []
    for kind, group in [*groups, ("all", examples)]:
        line = {
            "kind": kind,
            "examples": len(group),
            "share (%)": 100 * len(group) / len(examples),
        }
        for name in ("instruction", "output"):
            lengths = group[f"{name}_{unit}"]
            line |= {
                f"{name}, {words} ({unit})": float(lengths.quantile(share))
                for words, share in PERCENTILES.items()
            }
        lines.append(line)
    return pd.DataFrame(lines)
