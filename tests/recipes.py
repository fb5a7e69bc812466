"""Recipes of tests: a training and texts that are only named."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sinklora.reproduction.base_model.study import train_tokenizer
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.texts import TextSet
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec


def recipe_of(training: TrainSpec, corpus: CorpusSpec | None = None, tokens: int = 64) -> Recipe:
    """A recipe whose texts, validation and Table 1, are single pieces of one corpus."""
    texts = TextSet(corpus or CorpusSpec(split="test"), 1, tokens)
    return Recipe(training, 32, {"validation": texts, "Table 1": texts}, 16)


def functions(documents: int, lines: int) -> list[str]:
    """Source texts, no two alike."""
    return [
        "".join(f"def function_{i}_{line}(x):\n    return x * {i + line}\n" for line in range(lines))
        for i in range(documents)
    ]


def write_corpus(folder: Path, texts: Mapping[str, Sequence[str]]) -> str:
    """Texts by split as a folder of files; returns the source's name."""
    for split, given in texts.items():
        (folder / split).mkdir(parents=True)
        for number, text in enumerate(given):
            (folder / split / f"{number}.txt").write_text(text)
    return f"dir:{folder}"


def tiny_data(folder: Path, texts: Sequence[str], splits: Sequence[int], positions: int) -> tuple[str, str]:
    """A corpus of the texts, the first and second of `splits` where validation and test begin, and a tiny
    base; returns the source's name and the base's folder.
    """
    first, second = splits
    parts = {"train": texts[:first], "validation": texts[first:second], "test": texts[second:]}
    return write_corpus(folder / "corpus", parts), save_tiny_base(folder / "base", texts, positions)


def save_tiny_base(folder: Path, texts: Sequence[str], positions: int) -> str:
    """A random Llama of one layer, with a tokenizer of the texts; returns its folder."""
    tokenizer = train_tokenizer(list(texts), 300)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=positions, tie_word_embeddings=True, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
