"""The index of experiments: paper item -> notebook, parameters per profile, outputs
(``notebooks/experiments.yaml``).
"""

import ast
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

PROFILES = ("smoke", "cpu", "gpu", "paper")


@dataclass(frozen=True)
class Experiment:
    """One notebook: what it reproduces, its parameters in each profile it can run in, and the names of its
    outputs.
    """

    notebook: str
    reproduces: str
    parameters: dict[str, dict[str, Any]]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = set(self.parameters) - set(PROFILES)
        if unknown:
            raise ValueError(f"{self.notebook}: unknown profiles {sorted(unknown)}; known are {PROFILES}")


def load_experiments(path: Path = Path("notebooks/experiments.yaml")) -> tuple[Experiment, ...]:
    """Read the index; unknown or missing keys raise ValueError."""
    known = {f.name for f in fields(Experiment)}
    experiments = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        if set(entry) != known:
            raise ValueError(
                f"{path}: entry {entry.get('notebook')!r} has the keys {sorted(entry)}, not {sorted(known)}"
            )
        experiments.append(Experiment(**{**entry, "outputs": tuple(entry["outputs"])}))
    return tuple(experiments)


def check_parameters(notebook: Path, given: dict[str, Any]) -> None:
    """Raise ValueError if a parameter is unknown to a notebook or has another type than its default.

    papermill itself only warns of unknown parameters.
    """
    import papermill

    declared = papermill.inspect_notebook(str(notebook))
    for name, value in given.items():
        if name not in declared:
            raise ValueError(f"{notebook.name}: unknown parameter {name!r}; it has {sorted(declared)}")
        default = ast.literal_eval(declared[name]["default"])
        allowed = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in allowed:
            kind = type(default).__name__
            raise ValueError(
                f"{notebook.name}: parameter {name}={value!r}: expected {kind}, like {default!r}"
            )
