"""The index of experiments (`notebooks/experiments.yaml`): paper item -> notebook, parameters per profile,
outputs; and the check of parameters against the notebook that they are for.
"""

import ast
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from sinklora.records.checks import check_choice
from sinklora.reproduction.places import INDEX

# Toy size, which measures nothing; reduced; all, for hours of a CPU; a GPU; the paper's.
PROFILES = ("smoke", "quick", "full", "gpu", "paper")

ON_GPU = ("gpu", "paper")  # what results hold of these no CPU took

COMMITTED = ("full", "gpu", "paper")  # whose results the repository holds


@dataclass(frozen=True)
class Experiment:
    """One notebook: what it reproduces, its parameters in each profile it can run in, and the names of its
    outputs. Raises ValueError for an unknown profile or a field of the wrong kind.
    """

    notebook: str
    reproduces: str
    parameters: dict[str, dict[str, Any]]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.parameters, dict) and isinstance(self.outputs, tuple | list)):
            raise ValueError(f"{self.notebook}: expected a mapping of parameters and a list of outputs")
        object.__setattr__(self, "outputs", tuple(self.outputs))
        unknown = set(self.parameters) - set(PROFILES)
        if unknown:
            raise ValueError(f"{self.notebook}: unknown profiles {sorted(unknown)}; known are {PROFILES}")
        for profile, values in self.parameters.items():
            if not isinstance(values, dict):
                raise ValueError(
                    f"{self.notebook}, profile {profile}: {values!r}; expected a mapping, if empty {{}}"
                )


def load_experiments(path: Path = INDEX) -> tuple[Experiment, ...]:
    """Read the index; unknown or missing keys, and an output named twice, raise ValueError."""
    known = {f.name for f in fields(Experiment)}
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: expected a list of notebooks, each a mapping with {sorted(known)}")
    for entry in entries:
        if set(entry) != known:
            raise ValueError(
                f"{path}: entry {entry.get('notebook')!r} has the keys {sorted(entry)}, not {sorted(known)}"
            )
    experiments = tuple(Experiment(**entry) for entry in entries)
    outputs = Counter(name for experiment in experiments for name in experiment.outputs)
    if twice := sorted(name for name, count in outputs.items() if count > 1):
        raise ValueError(f"{path}: outputs {twice} are named twice; one would overwrite the other")
    return experiments


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Name and default of each parameter in a notebook's cell tagged "parameters".

    Raises ValueError for a default that is not a plain value.
    """
    import papermill

    declared = {}
    for name, parameter in papermill.inspect_notebook(str(notebook)).items():
        try:
            declared[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"{notebook.name}: the default of {name!r} is {parameter['default']}; expected a plain value"
            ) from error
    return declared


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Raise ValueError if a parameter is unknown to a notebook or has another type than its default.

    papermill itself only warns of unknown parameters. A whole number passes for a float; the entries of a
    list are compared with those of the default.
    """
    declared = declared_parameters(notebook)
    for name, value in parameters.items():
        if name not in declared:
            raise ValueError(f"{notebook.name}: unknown parameter {name!r}; it has {sorted(declared)}")
        if not _same_kind(value, declared[name]):
            kind = type(declared[name]).__name__
            raise ValueError(
                f"{notebook.name}: parameter {name}={value!r}: expected {kind}, like {declared[name]!r}"
            )
    if "profile" in declared:
        profile = parameters.get("profile", declared["profile"])
        check_choice(f"{notebook.name}: profile", profile, PROFILES)


def _same_kind(value: Any, default: Any) -> bool:
    """Exact types, so that True is no number and "3" no 3; a float may be given as a whole number."""
    if isinstance(default, list) and type(value) is list:
        return not default or all(any(_same_kind(item, known) for known in default) for item in value)
    allowed = (int, float) if isinstance(default, float) else (type(default),)
    return type(value) in allowed
