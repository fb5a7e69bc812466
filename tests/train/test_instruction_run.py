"""Runs on instructions: packed trains as unpacked, what was left out is told, a kill changes nothing."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import assert_close
from sinklora.records.files import json_hash
from sinklora.records.runs import RunDirectory
from sinklora.train.command import read_spec
from sinklora.train.data import told
from sinklora.train.examples import ExampleSource
from sinklora.train.instruction_spec import InstructionSpec, instruction_identity
from sinklora.train.pattern_schedules import PATTERN_SCHEDULES
from sinklora.train.run import load_trained, train, trainable_model
from sinklora.train.spec import TrainSpec
from sinklora.train.trainer import COMPLETE
from tiny_training import steps_behind, steps_done

FUNCTIONS = ["sum", "list", "range", "print", "sorted", "len"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with questions of unequal length, and one that is too long."""
    folder = tmp_path_factory.mktemp("instructions")
    rows = [
        {
            "instruction": f"def f(x): return {name}(x)\n" * (1 + i % 3) + "Which?",
            "output": name * (1 + i % 2),
        }
        for i, name in enumerate(FUNCTIONS)
    ]
    long = {"instruction": "import os\n" * 400, "output": "No."}
    for name, lines in (("short", rows), ("all", [*rows, long])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def spec_in(place: Path, source: str = "short", **changes: Any) -> InstructionSpec:
    values: dict[str, Any] = {
        "examples": ExampleSource(f"jsonl:{place / source}.jsonl"),
        "template": "llama-2",
        "context": 512,
        "pattern": "sf",
        "epochs": 4.0,
        "batch_size": 1,
        "micro_batch_size": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "bf16": False,
    }
    return InstructionSpec(**(values | changes))


def trained(place: Path, root: str, spec: InstructionSpec) -> RunDirectory:
    return train(spec, runs=place / root, cache=place / "cache", progress=False)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    [path] = [p for p in run.path.rglob("*.safetensors") if "checkpoints" not in p.parts]
    return load_file(path)


def record_of(run: RunDirectory) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "provenance.json").read_text())["data"]
    return found


def test_a_packed_row_trains_as_a_step_of_its_examples(place: Path) -> None:
    """One row of six examples, or six rows that a step accumulates: the same mean over answer tokens."""
    packed = trained(place, "runs", spec_in(place))
    apart = trained(place, "runs", spec_in(place, pack=False, batch_size=6, micro_batch_size=2))
    assert (record_of(packed)["rows"], record_of(apart)["rows"]) == (1, 6)
    losses = [pd.read_csv(run.path / "loss.csv").loss.tolist() for run in (packed, apart)]
    assert len(losses[0]) == 4 and losses[0][-1] < losses[0][0] - 0.1
    assert_close(losses[0], losses[1], atol=1e-4)
    ours, theirs = weights(packed), weights(apart)
    moved = max((value.abs().max().item() for name, value in ours.items() if "lora_B" in name), default=0.0)
    assert moved > 1e-4
    for name, value in ours.items():
        assert_close(value, theirs[name], atol=2e-4)
    assert type(load_trained(packed, spec_in(place))).__name__ == "LoraPlusModel"


def test_what_was_cut_and_left_out_is_recorded_and_told(place: Path) -> None:
    spec = spec_in(place, "all", long_examples="truncate-middle", epochs=1.0)
    record = record_of(trained(place, "told", spec))
    assert record["examples"] == 7 and (record["truncated"], record["dropped"]) == (1, 0)
    assert record["rows"] == 2 and 0.5 < record["filled"] <= 1
    assert 0 < record["answer_tokens"] < record["tokens"] <= 2 * 512
    assert "1 examples have lost the middle of a prompt, 0 were too long" in told(record, 512)
    dropped = trained(place, "told", dataclasses.replace(spec, long_examples="drop"))
    assert (record_of(dropped)["examples"], record_of(dropped)["dropped"]) == (6, 1)
    with pytest.raises(ValueError, match="context=512: 1 of 7 examples are longer"):
        trained(place, "refused", dataclasses.replace(spec, long_examples="error"))
    assert not (place / "refused").exists()


def test_a_schedule_of_patterns_runs_over_all_steps(place: Path) -> None:
    spec = spec_in(place, pattern="sf_then_full", epochs=1.0)
    [first, last] = PATTERN_SCHEDULES["sf_then_full"].stages
    assert spec.pattern_at(0, 10) == first[1] and spec.pattern_at(9, 10) == last[1]
    assert trained(place, "schedule", spec).path.name.startswith("sf_then_full-512-")


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_weights(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = spec_in(place, context=96, epochs=3.0, batch_size=2, save_every=2)
    undisturbed = trained(place, "undisturbed", spec)
    assert len(pd.read_csv(undisturbed.path / "loss.csv")) > 4
    config = place / "killed.yaml"
    config.write_text(yaml.safe_dump(dataclasses.asdict(spec)))
    command = [sys.executable, "-m", "sinklora.train", "--config", str(config)]
    command += ["--runs", str(place / "killed")]
    environment = {**os.environ, "SINKLORA_CACHE": str(place / "shared"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(place.glob(f"killed/*/checkpoints/checkpoint-*/{COMPLETE}")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(place.glob("killed/*/finished.json"))
    [found] = place.glob("killed/sf-*")
    behind = steps_behind(found)
    with steps_done() as steps:
        run = train(spec, runs=place / "killed", cache=place / "shared" / "tokens")
    assert behind > 0 and steps == list(range(behind, len(pd.read_csv(undisturbed.path / "loss.csv"))))
    assert "6 examples in" in capfd.readouterr().out
    run.verify()
    ours, theirs = weights(run), weights(undisturbed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_is_known_by_data_template_and_settings(place: Path) -> None:
    spec = spec_in(place)
    keys = [
        json_hash(instruction_identity(*given))
        for given in (
            (spec, "t", "0"),
            (spec, "u", "0"),
            (spec, "t", "1"),
            (dataclasses.replace(spec, pack=False), "t", "0"),
            (dataclasses.replace(spec, pattern="sf_growing"), "t", "0"),
        )
    ]
    assert len(set(keys)) == len(keys)


def test_a_file_with_examples_is_read_as_instructions(place: Path) -> None:
    config = place / "spec.yaml"
    config.write_text(yaml.safe_dump(dataclasses.asdict(spec_in(place))))
    assert read_spec(config) == spec_in(place)
    config.write_text("examples: {source: 'jsonl:x'}\nsteps: 3\n")
    with pytest.raises(ValueError, match=r"spec.yaml: InstructionSpec has no key 'steps'"):
        read_spec(config)
    config.write_text("steps: 3\n")
    assert read_spec(config) == TrainSpec(steps=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"template": "vicuna"}, "template='vicuna': expected one of llama-2, llama-3, chatml or None"),
        ({"long_examples": "truncate"}, "long_examples='truncate': expected one of error, truncate-middle"),
        ({"quantize": "8bit"}, "quantize='8bit': expected one of 4bit"),
        ({"quantize": "4bit"}, "quantize='4bit': needs method='lora_plus', bf16=True"),
        ({"epochs": 0}, "epochs=0: expected more than 0"),
        ({"pattern": "shift_up"}, "takes neither packed examples nor padding"),
    ],
)
def test_instructions_that_cannot_be_trained_on_are_named(
    place: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        spec_in(place, **changes)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is there")
def test_four_bits_without_bitsandbytes_are_refused_before_any_work(place: Path) -> None:
    with pytest.raises(ImportError, match="quantize='4bit': bitsandbytes is not installed"):
        trained(place, "quantized", spec_in(place, quantize="4bit", bf16=True))
    assert not (place / "quantized").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", ["full", "sf"])
def test_a_base_in_four_bits_trains(place: Path, pattern: str) -> None:
    pytest.importorskip("bitsandbytes")
    spec = spec_in(place, quantize="4bit", bf16=True, pattern=pattern, gradient_checkpointing=True)
    kinds = {type(module).__name__ for module in trainable_model(spec).modules()}
    assert "Linear4bit" in kinds
    losses = pd.read_csv(trained(place, "four", spec).path / "loss.csv").loss.tolist()
    assert losses[-1] < losses[0] - 0.05
