"""A tiny base model and a corpus in a folder, specs that train the one on the other in seconds, and what says
whether two such runs are one.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from helpers import assert_close
from several_processes import run_together
from sinklora.records.runs import RunDirectory
from sinklora.reproduction.base_model.study import train_tokenizer
from sinklora.train.run import Spec, train
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec
from sinklora.train.trainer import MarkComplete, last_complete_checkpoint

TEXTS = [f"def function_{i}(x):\n    return x * {i} + {i % 7}\n" * 30 for i in range(12)]

QUESTIONS = [
    {"instruction": TEXTS[i][: 60 * (1 + i % 3)], "output": f"function_{i}" * (1 + i % 2)} for i in range(5)
]


def make_place(folder: Path) -> Path:
    """Fill a folder with a tiny base model, a corpus and questions, which training processes work in; returns
    it.
    """
    (folder / "corpus" / "train").mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / "corpus" / "train" / f"{number}.txt").write_text(text)
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
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


def place_of_a_killed_run(folder: Path, script: Path, ranks: int) -> Path:
    """The same, where so many processes of a script have worked until one of them was killed in a run of the
    folder `killed`.
    """
    place = make_place(folder)
    said = run_together(script, ranks, place, fails=True)
    assert list(place.glob("killed/*/checkpoints")), said
    return place


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


def train_alone(place: Path, spec: Spec, root: str = "alone") -> RunDirectory:
    """The run in this process; it goes on from the last checkpoint that there is."""
    return train(spec, runs=place / root, cache=place / "cache", progress=False)


@contextmanager
def steps_done() -> Iterator[list[int]]:
    """The steps that this process trains meanwhile, each by how many of its run lie behind it."""
    steps: list[int] = []

    class Counting(MarkComplete):
        def on_step_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            steps.append(state.global_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sinklora.train.run.MarkComplete", Counting)
        yield steps


def steps_behind(run: Path) -> int:
    """How many lie behind the last complete checkpoint of a run; there must be one."""
    checkpoint = last_complete_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return int(checkpoint.name.rpartition("-")[2])


def assert_same_training(
    run: Path, expected: Path, losses: float = 1e-4, weights: float = 1e-3, *, rounded: bool = False
) -> None:
    """The same steps; their losses and the adapters differ by so much at most.

    `rounded`: the adapters on average, for where a gradient is nearly 0 rounding decides on a whole step.
    """
    curve, other = (pd.read_csv(path / "loss.csv") for path in (run, expected))
    assert curve.step.tolist() == other.step.tolist()
    assert_close(curve.loss.to_numpy(), other.loss.to_numpy(), atol=losses)
    found, right = (load_file(path / "adapter/adapter_model.safetensors") for path in (run, expected))
    assert found.keys() == right.keys()
    if rounded:
        differences = torch.cat([(found[name] - right[name]).abs().flatten() for name in right])
        assert float(differences.mean()) <= weights
        return
    for name, tensor in right.items():
        assert_close(found[name], tensor, atol=weights)
