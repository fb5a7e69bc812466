"""Seconds of a training step by whatever checkout of sinklora is first on the path, as JSON.

    PYTHONPATH=CHECKOUT python -P benchmarks/time_step.py '{"shape": "base", "context": 2048, ...}' STEPS

It imports no sinklora but that one, old ones too, in which a step lay in other modules and had fewer fields.
"""

import importlib
import json
import sys
import time
from dataclasses import fields
from types import ModuleType
from typing import Any

HOMES = ("step_spec", "training_step", "efficiency")  # of `StepSpec` in sinklora.evaluate, the newest first


def home_of_steps() -> ModuleType:
    """The module that defines `StepSpec` and takes a step; ImportError where there is none."""
    for name in HOMES:
        try:
            module = importlib.import_module(f"sinklora.evaluate.{name}")
        except ModuleNotFoundError:
            continue
        if all(hasattr(module, part) for part in ("StepSpec", "training_model", "training_step")):
            return module
    raise ImportError(f"none of sinklora.evaluate's modules {HOMES} takes a training step")


def seconds_of_steps(spec: dict[str, Any], steps: int) -> list[float]:
    """Of so many steps after one that is not timed; fields that this StepSpec does not have are left out."""
    home = home_of_steps()
    known = {field.name for field in fields(home.StepSpec)}
    own = home.StepSpec(**{name: value for name, value in spec.items() if name in known})
    step = home.training_step(own, home.training_model(own, own.device))
    seconds = []
    for _ in range(1 + steps):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return seconds[1:]


if __name__ == "__main__":
    print(json.dumps(seconds_of_steps(json.loads(sys.argv[1]), int(sys.argv[2]))))
