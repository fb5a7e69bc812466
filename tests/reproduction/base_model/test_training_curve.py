"""What the training curve shows: the loss of every step, and its running mean."""

import pandas as pd

from figure_data import lines
from sinklora.reproduction.base_model.figures import training_curve


def test_the_loss_and_its_running_mean() -> None:
    curve = pd.DataFrame({"step": [1, 2, 3, 4], "loss": [8.0, 4.0, 6.0, 2.0]})
    [axis] = training_curve(curve, "a model", smooth=2).axes
    assert lines(axis) == {
        "each step": ([1, 2, 3, 4], [8.0, 4.0, 6.0, 2.0]),
        "mean of 2 steps": ([1, 2, 3, 4], [8.0, 6.0, 5.0, 4.0]),
    }
    assert axis.get_title() == "a model, one run of 4 steps"
    assert axis.get_ylabel() == "training loss (nats a token)" and axis.get_ylim()[0] == 0
