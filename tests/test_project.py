"""Commands that the project promises: targets of make, what they pass on, and those that its texts print."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from helpers import understood

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]


def targets() -> set[str]:
    """Targets of the Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def made(*arguments: str) -> str:
    """What make would run."""
    command = ["make", "--dry-run", "--no-print-directory", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def blocks(name: str, kind: str = ".*?") -> list[str]:
    """The code blocks of a text, of a kind."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("target", sorted(targets()))
def test_make_knows_its_targets_and_helps_with_each(target: str) -> None:
    assert made(target).strip()
    shown = subprocess.run(["make", "-C", str(ROOT), "help"], check=True, capture_output=True, text=True)
    assert f"make {target} " in shown.stdout


def test_make_has_the_targets_that_people_know() -> None:
    known = {
        "demo",
        "reproduce",
        "smoke",
        "test",
        "lint",
        "format",
        "bench",
        "gpu",
        "lab",
        "clean",
        "distclean",
    }
    assert known < targets()


def test_make_reproduce_takes_a_profile_seeds_and_notebooks() -> None:
    assert re.search(r"sinklora reproduce --profile quick *$", made("reproduce"), re.MULTILINE)
    chosen = made("reproduce", "PROFILE=gpu", "SEEDS=0,1,2", "ONLY=02")
    assert "sinklora reproduce --profile gpu --seeds 0,1,2 --only 02" in chosen


def test_make_docs_ends_at_a_warning() -> None:
    command = made("docs", "STAMP=")
    assert "mkdocs build --strict" in command and "--quiet" not in command


@pytest.mark.parametrize("target", ["demo", "reproduce", "smoke", "gpu"])
def test_what_make_runs_is_understood(target: str) -> None:
    [arguments] = re.findall(r"-m sinklora (.*)", made(target, "MINUTES=9"))
    assert understood(arguments.split())


def test_conda_reaches_the_gpu_extra_by_one_commented_line() -> None:
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.strip().startswith("# - ")]
    uncommented = yaml.safe_load(text.replace(line, line.replace("# ", "", 1)))
    [pip] = [entry["pip"] for entry in uncommented["dependencies"] if isinstance(entry, dict)]
    assert pip[-1] == "-e .[gpu]"
    assert len(pip) == 3


@pytest.mark.parametrize("name", TEXTS)
def test_printed_make_commands_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    in_blocks = {
        target for block in blocks(name) for target in re.findall(r"^\s*make ([a-z-]+)", block, re.MULTILINE)
    }
    in_lines = set(re.findall(r"`make ([a-z-]+)[^`]*`", text))
    assert in_blocks or name not in TEXTS[:2], f"{name} shows no make command"
    assert in_blocks | in_lines <= targets()


def test_printed_commands_are_understood() -> None:
    shown = [block for name in TEXTS for block in blocks(name, "sh")]
    lines = [line.split("#")[0] for block in shown for line in block.splitlines()]
    printed = [line.split()[1:] for line in lines if line.startswith("sinklora ")]
    assert len(printed) >= 10
    assert all(understood(arguments) for arguments in printed)
    assert not [line for line in lines if "-m sinklora" in line and "-m sinklora.train " not in line]


@pytest.mark.parametrize("name", TEXTS)
def test_printed_paths_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    folders = "sinklora|tests|configs|notebooks|benchmarks|scripts|data"
    printed = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", text))
    assert printed or name not in TEXTS[:2]
    assert [path for path in sorted(printed) if not (ROOT / path).exists()] == []


def test_hooks_leave_executed_notebooks_as_they_came_out(tmp_path: Path) -> None:
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"].split()[1:] for hook in repository["hooks"]]
    ruffs = [arguments for arguments in entries if "ruff" in arguments]
    assert len(ruffs) == 2
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    written = tmp_path / "results/full/executed.py"
    written.parent.mkdir(parents=True)
    written.write_text("import os\nx = { 'a' :1 }\n")
    for arguments in ruffs:  # which are given the files by name
        subprocess.run([sys.executable, *arguments, str(written)], check=True, cwd=tmp_path)
        assert written.read_text() == "import os\nx = { 'a' :1 }\n"


def test_continuous_integration_names_tests_that_there_are() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    named = re.findall(r"((?:tests|scripts)/[\w./]+)(?:::(\w+))?", text)
    assert len(named) >= 10
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_the_versions_of_the_results_install_on_the_first_release_of_each_python(python: str) -> None:
    """Debian 12 has Python 3.11.2, and keeps it."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    installed = {d.name: d for d in metadata.distributions() if pinned.get(d.name.lower()) == d.version}
    needs = {name: d.metadata.get("Requires-Python") or "" for name, d in installed.items()}
    assert len(needs) > 100
    assert {name: need for name, need in needs.items() if python not in SpecifierSet(need)} == {}
