"""The command line `sinklora`: what it runs, and how it refuses."""

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import sinklora
from helpers import understood
from sinklora.attention.patterns import find_pattern
from sinklora.cache.policies import POLICIES, make_policy
from sinklora.cli import application
from sinklora.hf.model_shapes import SHAPES
from sinklora.records.runs import RunLockedError
from sinklora.refusals import told_in_a_sentence
from sinklora.reproduction.gpu import GpuPlan
from sinklora.reproduction.report.experiments import PROFILES
from sinklora.train.__main__ import application as training
from sinklora.train.command import read_spec
from sinklora.train.settings import METHODS

ROOT = Path(__file__).resolve().parents[1]


def invoked(*arguments: object) -> Any:
    return CliRunner().invoke(
        application, [str(argument) for argument in arguments], env={"COLUMNS": "300", "HF_HUB_OFFLINE": "1"}
    )


def helped(*path: str) -> str:
    return " ".join(invoked(*path, "--help").output.split())


def test_the_console_script_is_the_command_line() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, name = scripts["sinklora"].split(":")
    assert callable(getattr(importlib.import_module(module), name))
    shown = subprocess.run(
        [sys.executable, "-m", "sinklora", "--help"], check=True, capture_output=True, text=True
    )
    commands = [
        "demo",
        "chat",
        "fetch",
        "train",
        "reproduce",
        "longbench",
        "estimate",
        "measure",
        "eval",
        "gpu",
        "report",
    ]
    assert all(command in shown.stdout for command in commands)


def test_shells_can_complete_it() -> None:
    # What a shell asks for; `--show-completion` would look which shell has started the tests.
    asking = {"_SINKLORA_COMPLETE": "source_bash"}
    shown = CliRunner().invoke(application, [], env=asking, prog_name="sinklora")
    assert shown.exit_code == 0 and "complete -o default -F" in shown.output


def test_help_names_only_what_there_is() -> None:
    published = ("h2o", "local", "streaming", "tova", "snapkv", "expected_attention")
    for name in ("full", *published, "novelty", "replay"):
        assert name in POLICIES and name in helped("eval") and name in helped("longbench", "predict")
    assert all(profile in helped("reproduce") for profile in PROFILES)
    assert all(method in helped("estimate") for method in METHODS)
    assert {"base", "llama2-7b"} <= set(SHAPES)
    assert all(find_pattern(name) and name in helped("measure") for name in ("full", "sf", "s2"))


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--config", "nowhere.yaml"), "config='nowhere.yaml': no such file"),
        (("estimate", "base", 2048, "sff"), "'sff'"),
        (("estimate", "base", 0, "sf"), "context=0"),
        (("estimate", "llama9", 2048, "sf"), "shape='llama9'"),
        (("estimate", "base", 2048, "sf", "--method", "LoRA"), "method='LoRA'"),
        (("measure", "base", 2048, "sf", "--device", "gpu"), "device='gpu'"),
        (("reproduce", "--profile", "tiny"), "profile='tiny'"),
        (("reproduce", "--seeds", "0;1"), "seeds='0;1'"),
        (("reproduce", "--only", "99"), "only='99'"),
        (("longbench", "score", "nowhere"), "nowhere has no files named"),
        (("eval", "--tasks", "openbookqa"), "--pretrained"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_wrong_request_is_refused_in_one_sentence(arguments: tuple[object, ...], words: str) -> None:
    refused = invoked(*arguments)
    assert refused.exit_code == 2
    lines = refused.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: ") and words in lines[0]
    assert refused.stdout == ""


@pytest.mark.parametrize("rank", ["--local_rank=1", "--local-rank=1"])
def test_training_takes_what_launchers_say_before_its_own_options(rank: str) -> None:
    """DeepSpeed's (`deepspeed --module`) and the old one of PyTorch; ranks are read from the environment."""
    refused = CliRunner().invoke(training, [rank, "--config", "nowhere.yaml"])
    assert "config='nowhere.yaml': no such file" in refused.stderr
    assert "local" not in helped("train")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("context: 0", "context=0"),
        ("contxt: 2048", "contxt"),
        ("[base, 2048]", "keys and values"),
        ("base: [", "line 1"),
        ("", "keys and values"),
        ("base: no/such/model/here", "base='no/such/model/here': no model there"),
    ],
)
def test_a_wrong_specification_is_told_with_its_file(text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text(text, encoding="utf-8")
    refused = invoked("train", "--config", config, "--runs", tmp_path / "runs")
    assert refused.exit_code == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert "no model" in words or str(config) in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_away_from_a_clone_notebooks_are_found_and_a_report_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = invoked("reproduce", "--only", "99")
    assert refused.exit_code == 2 and "there are ['00_base_model'" in refused.stderr
    refused = invoked("report")
    assert refused.exit_code == 2 and "experiments.yaml" in refused.stderr and "clone" in refused.stderr


def run_as_a_command(work: Callable[[], object]) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @told_in_a_sentence
    def command() -> None:
        work()

    return CliRunner().invoke(app)


def out_of_memory() -> None:
    raise RuntimeError("out of memory")


def locked() -> None:
    raise RunLockedError("another process\n works here")


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (lambda: make_policy("h3o"), "kv='h3o': expected one of expected_attention, full"),
        (lambda: read_spec(Path("nowhere")), "config='nowhere': no such file"),
        (locked, "another process works here"),
    ],
)
def test_what_sinklora_refuses_is_a_sentence(work: Callable[[], object], sentence: str) -> None:
    refused = run_as_a_command(work)
    assert refused.exit_code == 2 and refused.stderr.startswith(f"Error: {sentence}")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda: sinklora.H3O, AttributeError),  # type: ignore[attr-defined]
        (lambda: SHAPES["llama9"], KeyError),
        (out_of_memory, RuntimeError),
        (lambda: Path("there/is/nothing").read_text(), FileNotFoundError),
        (lambda: yaml.safe_load("["), yaml.YAMLError),
        (lambda: importlib.import_module("no_such_library"), ImportError),
    ],
)
def test_a_fault_and_what_a_library_below_raises_keep_their_traceback(
    work: Callable[[], object], kind: type[Exception]
) -> None:
    assert isinstance(run_as_a_command(work).exception, kind)


# --- commands written elsewhere -----------------------------------------------------------------------------


def test_the_plan_for_a_gpu_calls_commands_that_there_are() -> None:
    steps = [step.run for step in GpuPlan.read(ROOT / "configs" / "gpu.yaml").steps]
    modules = [run[1] for run in steps if run[0] == "-m"]
    assert set(modules) <= {"sinklora", "pytest"}, "sinklora's commands are those of one command line"
    ours = [list(run[2:]) for run in steps if run[:2] == ("-m", "sinklora")]
    assert ours and all(understood(arguments) for arguments in ours)
