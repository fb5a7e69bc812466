"""What each process of `test_several_processes.py` does: run after run, killed in the last."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import sinklora.train.run
from sinklora.hf.rope import find_transformer
from sinklora.train.examples import ExampleSource
from sinklora.train.instruction_spec import InstructionSpec
from sinklora.train.loss import ChunkedLoss
from sinklora.train.run import Spec, train, trainable_model
from sinklora.train.spec import TrainSpec
from sinklora.train.trainer import MarkComplete
from tiny_training import spec_in

STEPS = 20

# Nothing but sums in another order may tell several processes from one: float32, and no step too large.
COMMON: dict[str, Any] = {"steps": STEPS, "bf16": False, "save_every": 8, "group_size": 24}


def base_spec(place: Path) -> TrainSpec:
    return spec_in(place, **COMMON)


BATCHES_OF_TWO: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 2}

# Five rows: of an epoch's two steps the second has one batch, of one row.
FEW_ROWS: dict[str, Any] = {"context": 300, "steps": 6, **BATCHES_OF_TWO}

# By the folder that they stand in: what the runs are, and in how many processes a row is.
RUNS: dict[str, dict[str, Any]] = {
    "data": {},
    "sequence": {"sequence_parallel": 2},
    "sequence, documents": {"sequence_parallel": 2, "separate_documents": True, "context": 65, "steps": 3},
    "sequence, checkpointing": {
        "sequence_parallel": 2,
        "gradient_checkpointing": True,
        "base_dtype": "bfloat16",
        "bf16": True,
        "steps": 3,
    },
    "sequence, full": {"sequence_parallel": 2, "pattern": "full", "steps": 3},
    "data, few rows": FEW_ROWS,
    "sequence, few rows": {**FEW_ROWS, "sequence_parallel": 2},
    "data, few examples": {"context": 512, "pack": False, **BATCHES_OF_TWO},
}


def spec_of(place: Path, root: str) -> Spec:
    """The spec of one of RUNS, on examples where it says how they are packed."""
    changes = RUNS[root]
    if "pack" not in changes:
        spec = dataclasses.replace(base_spec(place), **changes)
        few = dataclasses.replace(spec.corpus, total_characters=2500)
        return dataclasses.replace(spec, corpus=few) if "few" in root else spec
    source = ExampleSource(f"jsonl:{place / 'questions.jsonl'}")
    settings = {"base": str(place / "base"), "learning_rate": 1e-2, "warmup_steps": 1, "bf16": False}
    return InstructionSpec(examples=source, template="llama-2", **settings, **changes)


class KilledAfterCheckpoint(MarkComplete):
    """A MarkComplete of which the second process does not survive the first checkpoint."""

    def on_save(self, *arguments: Any, **given: Any) -> None:
        super().on_save(*arguments, **given)
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def plain_losses(model: Any, rows: slice) -> list[float]:
    """Losses of a plain loop over batches of two rows, of which this process takes some."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss_of, losses = ChunkedLoss(16), []
    for ids in torch.randint(0, 200, (STEPS, 2, 32), generator=torch.Generator().manual_seed(0)):
        loss = loss_of(model, ids[rows], ids[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def fully_sharded_losses(place: Path) -> None:
    """The same model with its parameters divided among the processes (FSDP2), each with a row of its own."""
    model: Any = trainable_model(base_spec(place)).train()
    for layer in find_transformer(model).model.layers:
        fully_shard(layer)
    fully_shard(model)
    rank = dist.get_rank()
    losses = plain_losses(model, slice(rank, rank + 1))
    divided = sum(isinstance(p, DTensor) for p in model.parameters())
    said = {"losses": losses, "divided": divided, "parameters": len(list(model.parameters()))}
    (place / f"fully_sharded-{rank}.json").write_text(json.dumps(said))


def main(place: Path) -> None:
    def run(root: str, spec: Spec) -> None:
        train(spec, runs=place / root, cache=place / "cache", progress=False)

    for root in RUNS:
        run(root, spec_of(place, root))
    fully_sharded_losses(place)
    sinklora.train.run.MarkComplete = KilledAfterCheckpoint  # type: ignore[misc]
    run("killed", base_spec(place))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
