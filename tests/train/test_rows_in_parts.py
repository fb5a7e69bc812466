"""Rows cut into parts while several are held at once, killed and gone on with, against one process."""

import json
from pathlib import Path

import pandas as pd
import pytest
from training_processes import STEPS, base_spec

from several_processes import run_together
from sinklora.train.trainer import last_complete_checkpoint
from tiny_training import assert_same_training, place_of_a_killed_run, train_alone

pytestmark = pytest.mark.slow  # four processes that train for a minute

SCRIPT = Path(__file__).with_name("sequence_processes.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which four processes have made a run, and another one until one of them was killed."""
    return place_of_a_killed_run(tmp_path_factory.mktemp("training"), SCRIPT, 4)


def test_four_processes_train_what_one_trains(place: Path) -> None:
    expected = train_alone(place, base_spec(place))
    [run] = (path.parent for path in place.glob("whole/*/finished.json"))
    assert len(pd.read_csv(run / "loss.csv")) == STEPS
    assert_same_training(run, expected.path)


def test_two_processes_go_on_where_one_of_four_was_killed(place: Path) -> None:
    [work] = place.glob("killed/*/checkpoints")
    checkpoint = last_complete_checkpoint(work)
    assert checkpoint is not None and checkpoint.name == "checkpoint-8"
    run_together(SCRIPT, 2, place)
    for rank in range(2):
        assert json.loads((place / f"steps-{rank}.json").read_text()) == list(range(8, STEPS))
    [run] = (path.parent for path in place.glob("killed/*/finished.json"))
    assert_same_training(run, train_alone(place, base_spec(place)).path)
