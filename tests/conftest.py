"""Settings of all tests: one thread, no hub, fixed seeds, GPU tests only with a GPU; the embedded base."""

import gc
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # which would be asked for half a minute

settings.register_profile("house", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("house")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked `slow` or `cluster` unless `-m` names that; skip those marked `gpu` without
    CUDA.
    """
    asked = config.getoption("markexpr")
    unasked = [marker for marker in ("slow", "cluster") if marker not in asked]
    if left_out := {item for item in items if any(map(item.get_closest_marker, unasked))}:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Let garbage collections be few, and none go through the million objects that collecting the tests has
    made: together they took an eighth of the suite's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test draws the same numbers, in whatever order the tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The embedded base's."""
    return AutoTokenizer.from_pretrained("data/base")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The embedded base in float32; a module's tests share it."""
    made: PreTrainedModel = AutoModelForCausalLM.from_pretrained("data/base", dtype=torch.float32).eval()
    return made
