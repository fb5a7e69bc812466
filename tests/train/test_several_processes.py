"""Training in two processes, on rows of their own and on parts of the same rows, against one process."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from training_processes import RUNS, STEPS, base_spec, plain_losses, spec_of

from helpers import assert_close
from sinklora.train.run import trainable_model
from sinklora.train.trainer import last_complete_checkpoint
from tiny_training import assert_same_training, place_of_a_killed_run, spec_in, steps_done, train_alone

pytestmark = pytest.mark.slow  # two processes that train for a minute

SCRIPT = Path(__file__).with_name("training_processes.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two processes have made all runs, the second one having been killed in the last."""
    return place_of_a_killed_run(tmp_path_factory.mktemp("training"), SCRIPT, 2)


@pytest.mark.parametrize("root", RUNS)
def test_two_processes_train_what_one_trains(place: Path, root: str) -> None:
    spec = dataclasses.replace(spec_of(place, root), sequence_parallel=1)
    expected = train_alone(place, spec)
    [run] = (path.parent for path in place.glob(f"{root}/*/finished.json"))
    assert run.name == expected.path.name  # known by what is trained, not by how
    assert len(pd.read_csv(run / "loss.csv")) == getattr(spec, "steps", 6)  # three epochs of examples
    within: dict[str, Any] = {"losses": 2e-3, "rounded": True} if "checkpointing" in root else {}
    assert_same_training(run, expected.path, **within)


def test_one_process_goes_on_where_one_of_two_was_killed(place: Path) -> None:
    [work] = place.glob("killed/*/checkpoints")
    checkpoint = last_complete_checkpoint(work)
    assert checkpoint is not None and checkpoint.name == "checkpoint-8"
    with steps_done() as steps:
        run = train_alone(place, base_spec(place), "killed")
    assert steps == list(range(8, STEPS))
    expected = train_alone(place, base_spec(place))
    run.verify()
    assert_same_training(run.path, expected.path)


def test_parameters_divided_among_processes_train_as_whole_ones(place: Path) -> None:
    """PyTorch's FSDP2, whose processes divide the output layer too, which the chunked loss applies itself."""
    found = [json.loads((place / f"fully_sharded-{rank}.json").read_text()) for rank in range(2)]
    assert all(said["divided"] == said["parameters"] > 0 for said in found)
    model = trainable_model(base_spec(place)).train()
    means = [(one + other) / 2 for one, other in zip(*(said["losses"] for said in found), strict=True)]
    assert_close(means, plain_losses(model, slice(0, 2)), atol=1e-4)
    assert means[-1] < means[0]


def test_what_cannot_be_cut_is_refused_before_any_work(place: Path) -> None:
    with pytest.raises(ValueError, match="sequence_parallel=2: expected a multiple of 2 processes, got 1"):
        train_alone(place, dataclasses.replace(base_spec(place), sequence_parallel=2, seed=7), "refused")
    assert not list(place.glob("refused/*"))
    with pytest.raises(ValueError, match=r"pattern='random': .* does not consist of windows"):
        spec_in(place, sequence_parallel=2, pattern="random")
    with pytest.raises(ValueError, match="not together with compile=True"):
        spec_in(place, sequence_parallel=2, compile=True)
