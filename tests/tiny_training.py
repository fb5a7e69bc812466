"""A tiny base model and a corpus in a folder, and specs that train the one on the other in seconds."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sinklora.reproduction.base_model.study import train_tokenizer
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec

TEXTS = [f"def function_{i}(x):\n    return x * {i} + {i % 7}\n" * 30 for i in range(12)]


def make_place(folder: Path) -> Path:
    """Fill a folder with a tiny base model and a corpus, which training processes work in; returns it."""
    (folder / "corpus" / "train").mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / "corpus" / "train" / f"{number}.txt").write_text(text)
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    return folder


def spec_in(place: Path, **changes: object) -> TrainSpec:
    values: dict[str, object] = {
        "base": str(place / "base"),
        "corpus": CorpusSpec(f"dir:{place / 'corpus'}"),
        "context": 64,
        "steps": 6,
        "batch_size": 2,
        "micro_batch_size": 1,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "save_every": 2,
        "loss_chunk": 16,
    }
    return TrainSpec(**(values | changes))  # type: ignore[arg-type]
