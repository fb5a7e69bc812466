"""What the project promises outside its code: one set of versions, commands that work, clean notebooks."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED_EXTRAS = ["notebooks", "eval", "real", "dev"]
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cfg", ".cff", ".ipynb", ".json", ".csv", ".tex", ""}
# Where text says on whose machine it was written: absolute paths below these roots, and home folders.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}/-])/(?:home|root|tmp|work|Users|mnt|opt|scratch)/[\w.-]+"
    r"|(?:index-url|find-links)[ =]+\S*/\S*"  # nor on whose package index it relied
)


def requirements(*extras: str) -> list[Requirement]:
    """The core dependencies and those of the given extras."""
    optional = PROJECT["optional-dependencies"]
    return [
        Requirement(text) for text in [*PROJECT["dependencies"], *(r for e in extras for r in optional[e])]
    ]


def constraints() -> dict[str, Version]:
    """Name -> the one version that constraints.txt allows."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def tracked_files() -> list[Path]:
    """Every file that is, or would be, in the repository."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def targets() -> set[str]:
    """Targets of the Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def notebooks() -> list[Path]:
    """All notebooks of the project."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


# --- versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requirement", requirements("notebooks", "eval", "real", "gpu", "dev"), ids=str)
def test_dependencies_have_a_lower_bound_only(requirement: Requirement) -> None:
    assert [specifier.operator for specifier in requirement.specifier] == [">="]


@pytest.mark.parametrize("requirement", requirements(*PINNED_EXTRAS), ids=str)
def test_constraints_pin_every_dependency_above_its_bound(requirement: Requirement) -> None:
    pinned = constraints()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)
    assert pinned.local is None, "a local version such as +cpu is found on one machine only"


def test_conda_installs_the_same_package_with_the_same_constraints() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", f"-e .[{','.join(PINNED_EXTRAS)}]"]
    [python] = [d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        python.removeprefix("python=") + ".9"
    )
    assert environment["name"] == PROJECT["name"]


def test_conda_reaches_the_gpu_extra_by_one_commented_line() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.strip().startswith("# - ")]
    uncommented = yaml.safe_load(text.replace(line, line.replace("# ", "", 1)))
    [pip] = [entry["pip"] for entry in uncommented["dependencies"] if isinstance(entry, dict)]
    assert pip[-1] == "-e .[gpu]"
    assert len(pip) == 3


def test_make_installs_what_conda_installs() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f'-c constraints.txt -e ".[{",".join(PINNED_EXTRAS)}]"' in text


# --- commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["reproduce", "smoke", "test", "lint", "bench", "gpu", "lab", "clean"])
def test_make_knows_its_targets(target: str) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), target]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_make_reproduce_takes_a_profile_seeds_and_notebooks() -> None:
    command = ["make", "--dry-run", "-C", str(ROOT), "reproduce"]
    default = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    command += ["PROFILE=gpu", "SEEDS=0,1,2", "ONLY=02"]
    chosen = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert re.search(r"sinklora\.reproduction\.notebooks --profile cpu *$", default, re.MULTILINE)
    assert "sinklora.reproduction.notebooks --profile gpu --seeds 0,1,2 --only 02" in chosen


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_printed_make_commands_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    in_blocks = {
        target for block in blocks for target in re.findall(r"^\s*make ([a-z-]+)", block, re.MULTILINE)
    }
    in_lines = set(re.findall(r"`make ([a-z-]+)[^`]*`", text))
    assert in_blocks, f"{name} shows no make command"
    assert in_blocks | in_lines <= targets()


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert (
        PROJECT["license"] == yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["license"]
    )


def test_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]


# --- notebooks ----------------------------------------------------------------------------------------------


def definitions(source: str) -> list[str]:
    """Functions and classes that a code cell defines; magics and shell lines do not count."""
    lines = ["pass" if line.startswith(("%", "!")) else line for line in source.splitlines()]
    tree = ast.parse("\n".join(lines))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    return [ast.unparse(node).splitlines()[0] for node in ast.walk(tree) if isinstance(node, kinds)]


def stored_results(notebook: dict[str, Any]) -> list[int]:
    """Positions of the code cells that hold outputs or an execution count."""
    cells = enumerate(notebook["cells"])
    return [i for i, c in cells if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"])]


def test_notebooks_are_stored_without_outputs() -> None:
    found = {path.name: stored_results(json.loads(path.read_text(encoding="utf-8"))) for path in notebooks()}
    assert {name: cells for name, cells in found.items() if cells} == {}


def test_notebooks_define_nothing() -> None:
    found = {}
    for path in notebooks():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        found[path.name] = [name for source in code for name in definitions(source)]
    assert {name: names for name, names in found.items() if names} == {}


def test_notebook_checks_find_what_they_look_for() -> None:
    assert definitions("%matplotlib inline\nx = 1\ndef f():\n    pass\nclass A: pass") == [
        "def f():",
        "class A:",
    ]
    assert definitions("!ls\nfor i in range(3):\n    print(i)") == []
    ran = {"cell_type": "code", "source": "1", "outputs": [], "execution_count": 3}
    shown = {"cell_type": "code", "source": "1", "outputs": [{"text": "1"}], "execution_count": None}
    clean = {"cell_type": "code", "source": "1", "outputs": [], "execution_count": None}
    assert stored_results({"cells": [{"cell_type": "markdown"}, clean, ran, shown]}) == [2, 3]


# --- text ---------------------------------------------------------------------------------------------------


def test_no_file_names_the_machine_it_was_written_on() -> None:
    found = []
    for path in tracked_files():
        if path.suffix in TEXT and path != Path(__file__).resolve():
            text = path.read_text(encoding="utf-8")
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /scratch/jobs/x", True),
        ('"/home/ann/data"', True),
        ("(/tmp/a.txt)", True),
        ("pip install --extra-index-url http://localhost/simple", True),
        ("https://host/home/page", False),
        ("~/scratch/x and $HOME/tmp/x", False),
        ("results/tmp/x, #!/usr/bin/env bash, /proc/cpuinfo", False),
        ("tokens/scratch", False),
    ],
)
def test_machine_paths_are_recognised(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_large_or_unsafe_files() -> None:
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked_files()}
    assert {name: size for name, size in sizes.items() if size > 12 * 2**20} == {}
    assert [name for name in sizes if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))] == []
