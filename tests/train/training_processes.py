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
from sinklora.train.loss import ChunkedLoss
from sinklora.train.run import train, trainable_model
from sinklora.train.spec import TrainSpec
from sinklora.train.trainer import MarkComplete
from tiny_training import spec_in

STEPS = 20

# Nothing but sums in another order may tell several processes from one: float32, and no step too large.
COMMON: dict[str, Any] = {"steps": STEPS, "bf16": False, "save_every": 8, "group_size": 24}


def base_spec(place: Path) -> TrainSpec:
    return spec_in(place, **COMMON)


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
}


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
    spec = base_spec(place)

    def run(root: str, **changes: Any) -> None:
        spec_of = dataclasses.replace(spec, **changes)
        train(spec_of, runs=place / root, cache=place / "cache", progress=False)

    for root, changes in RUNS.items():
        run(root, **changes)
    fully_sharded_losses(place)
    sinklora.train.run.MarkComplete = KilledAfterCheckpoint  # type: ignore[misc]
    run("killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
