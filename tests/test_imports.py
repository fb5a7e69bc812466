"""What is imported when: nothing heavy before it is used, and every public name from where it is defined."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import sinklora
from sinklora.cli import application

HEAVY = {
    "accelerate",
    "datasets",
    "lm_eval",
    "matplotlib",
    "numpy",
    "pandas",
    "papermill",
    "peft",
    "pyarrow",
    "scipy",
    "sympy",
    "torch",
    "transformers",
}
WITH_TORCH = {"numpy", "torch"}
TOPMOST = "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def imported_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after running some code."""
    command = [sys.executable, "-c", f"import json, sys\n{code}\n{TOPMOST}"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return HEAVY & set(json.loads(shown.splitlines()[-1]))


def commands() -> list[list[str]]:
    """Every command of the command line with its groups: [], ["train"], ["longbench", "score"], ..."""
    found, left = [], [([], get_command(application))]
    while left:
        path, command = left.pop()
        found.append(path)
        left += [([*path, name], inner) for name, inner in getattr(command, "commands", {}).items()]
    return sorted(found)


def test_importing_sinklora_imports_nothing_heavy() -> None:
    assert imported_by("import sinklora\nsinklora.__all__\ndir(sinklora)") == set()


def test_patterns_policies_and_specifications_bring_pytorch_alone() -> None:
    code = """
import sinklora
sinklora.attend, sinklora.H2O, sinklora.SF
from sinklora.train.spec import TrainSpec
TrainSpec()
"""
    assert imported_by(code) <= WITH_TORCH


def test_the_check_of_imports_sees_what_is_imported() -> None:
    assert imported_by("import numpy") == {"numpy"}


def test_help_imports_nothing_heavy() -> None:
    """All helps in one interpreter: what one imports would be seen after the last."""
    assert ["longbench", "predict"] in commands() and len(commands()) >= 11
    code = f"""
from typer.testing import CliRunner
from sinklora.cli import application
for path in {commands()!r}:
    shown = CliRunner().invoke(application, [*path, "--help"])
    assert shown.exit_code == 0 and "Usage" in shown.output, (path, shown.output)
"""
    assert imported_by(code) == set()


def test_the_public_names_are_those_of_the_stub_and_are_there() -> None:
    stub = ast.parse(Path(sinklora.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    named = {}
    for node in stub.body:
        assert isinstance(node, ast.ImportFrom), ast.unparse(node)
        [alias] = node.names
        assert alias.name == alias.asname, f"{alias.name}: only 'import name as name' is public in a stub"
        named[alias.name] = node.module
    assert sorted(named) == sinklora.__all__
    assert set(named) <= set(dir(sinklora))
    for name, home in named.items():
        public = getattr(sinklora, name)
        assert public is getattr(importlib.import_module(home), name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert public.__module__ == home, f"{name} is defined elsewhere"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'H3O'"):
        sinklora.H3O  # type: ignore[attr-defined]  # noqa: B018
