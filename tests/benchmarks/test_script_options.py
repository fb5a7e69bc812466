"""Command lines of the benchmarks: written ones are understood, wrong ones refused before anything starts."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field
from real_model_options import RealModelOptions
from script_options import Repeats, script, settings_of
from typer.testing import CliRunner

from benchmark_options import options_read
from sinklora.records.checks import Count, Distinct, check_fields
from sinklora.reproduction.gpu import GpuPlan

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "script(main" in path.read_text("utf-8")
]


@dataclass(frozen=True)
class SomeOptions:
    """Options of every kind."""

    lengths: Annotated[Distinct[Annotated[int, Field(multiple_of=8)]], typer.Option(help="tokens")] = (8, 16)
    shares: Annotated[Distinct[float], typer.Option(help="of the prompt")] = (0.5,)
    names: Annotated[tuple[str, ...], typer.Option(help="of caches")] = ()
    batch: Annotated[Count, typer.Option(help="rows")] = 1
    repeats: Repeats = 3
    out: Annotated[Path | None, typer.Option(help="folder")] = None
    compile: Annotated[bool, typer.Option("--compile", help="as well")] = False

    def __post_init__(self) -> None:
        check_fields(self)


def print_options(options: SomeOptions) -> None:
    print(options)


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(script(print_options, SomeOptions), list(arguments), env={"COLUMNS": "300"})


def test_options_are_the_fields_of_a_dataclass() -> None:
    assert invoked().output == f"{SomeOptions()}\n"
    asked = SomeOptions((8, 24), (0.1, 1.0), ("h2o", "local"), 2, 3, Path("here"), True)
    arguments = ["--lengths", "8, 24", "--shares", "0.1,1", "--names", "h2o,local"]
    done = invoked(*arguments, "--batch", "2", "--out", "here", "--compile")
    assert done.exit_code == 0 and done.output == f"{asked}\n"
    assert set(settings_of(asked)) == {"lengths", "shares", "names", "batch", "repeats", "compile"}


def test_help_tells_of_the_module_and_of_every_option() -> None:
    told = " ".join(invoked("--help").output.split())
    assert "Command lines of the benchmarks: written ones are understood" in told
    assert re.search(r"--repeats .* rounds that are measured \[default: 3\]", told)
    assert "[default: 8,16]" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--batch 0", "Error: batch=0: expected at least 1"),
        ("--lengths 8,12", "Error: lengths[1]=12: expected a multiple of 8"),
        ("--lengths 8,8", "Error: lengths=(8, 8): expected at least one, and none twice"),
        ("--lengths 8,x", "Error: lengths='8,x': expected whole numbers separated by commas"),
        ("--shares nan", "Error: shares[0]=nan: expected a finite number"),
        ("--shares half", "Error: shares='half': expected numbers separated by commas"),
        ("--batch many", "Invalid value for '--batch'"),
        ("--batc 2", "No such option"),
        ("--lengths 8 16", "16"),
    ],
)
def test_wrong_options_are_refused(arguments: str, words: str) -> None:
    refused = invoked(*arguments.split())
    assert refused.exit_code == 2 and words in refused.stderr and not refused.stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("architectures", "--only lama"),
        ("attention", "--lengths 60"),
        ("kv_cache", "--budgets 0.5,2"),
        ("peers", "--longlora benchmarks"),
        ("real_model", "--quick --caches h3o"),
        ("sequence_traffic", "--tokens 65"),
        ("training", "--methods lora+"),
        ("training_against", "--against benchmarks"),
    ],
)
def test_every_benchmark_refuses_in_one_sentence(name: str, arguments: str) -> None:
    refused = CliRunner().invoke(importlib.import_module(name).application, arguments.split())
    assert refused.exit_code == 2 and re.fullmatch(r"Error: \w+(\[\d\])?=\S+: expected .*\n", refused.stderr)


def test_other_defaults_are_those_of_quick() -> None:
    read = options_read(RealModelOptions, ["--batches", "2", "--quick"])
    assert (read.prompts, read.batches, read.steps, read.repeats) == ((48,), (2,), 3, 1)


def written_commands() -> Iterator[list[str]]:
    """What the plan for a GPU, the Makefile, documents and docstrings call benchmarks with."""
    for step in GpuPlan.read(ROOT / "configs" / "gpu.yaml").steps:
        if step.run[0].startswith("benchmarks/"):
            yield list(step.run)
    for path in [ROOT / "Makefile", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.py")]:
        for line in re.findall(r"(?:python|\(PY\)) (benchmarks/[^`#\n]*)", path.read_text(encoding="utf-8")):
            without_folders = re.sub(r"--(longlora|against) \S+", "", line)  # of other checkouts
            command = shlex.split(without_folders.replace("$(OUT)", "out"))
            if Path(command[0]).stem in SCRIPTS:
                yield command


@pytest.mark.parametrize("command", list(written_commands()), ids=" ".join)
def test_written_commands_are_understood(command: list[str]) -> None:
    name, *arguments = command
    module = importlib.import_module(Path(name).stem)
    [kind] = [value for key, value in vars(module).items() if key.endswith("Options")]
    assert isinstance(options_read(kind, arguments), kind)


def test_every_benchmark_is_a_script_with_help() -> None:
    assert len(SCRIPTS) == 8
    for name in SCRIPTS:
        shown = CliRunner().invoke(importlib.import_module(name).application, ["--help"])
        assert shown.exit_code == 0 and "--help" in shown.output


@pytest.mark.slow
def test_a_script_runs_from_the_root_of_the_checkout() -> None:
    command = [sys.executable, "benchmarks/sequence_traffic.py", "--tokens", "64", "--ranks", "2,4"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.count("Llama-2-7B") == 2
