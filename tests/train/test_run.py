"""Training runs on a tiny random model: keyed, reused, resumed after a kill, bit for bit the same."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.training_args import ParallelMode

from sinklora.records.files import file_hash
from sinklora.records.runs import DamagedRunError, RunDirectory
from sinklora.train.command import read_spec
from sinklora.train.data import training_data
from sinklora.train.run import _curve, load_trained, train, trainable_model
from sinklora.train.spec import TrainSpec
from sinklora.train.spent_seconds import SECONDS, SpentSeconds
from sinklora.train.trainer import (
    COMPLETE,
    MarkComplete,
    last_complete_checkpoint,
    training_arguments,
)
from tiny_training import TEXTS, make_place, spec_in, steps_behind, steps_done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("training"))


def train_in(place: Path, root: str, spec: TrainSpec) -> RunDirectory:
    return train(spec, runs=place / root, cache=place / "cache", progress=False)


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    [path] = [p for p in run.path.rglob("*.safetensors") if "checkpoints" not in p.parts]
    return load_file(path)


def assert_same_weights(left: RunDirectory, right: RunDirectory) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> RunDirectory:
    return train_in(place, "undisturbed", spec_in(place))


def test_a_run_holds_its_adapter_curve_and_provenance(undisturbed: RunDirectory) -> None:
    assert undisturbed.state() == "finished"
    curve = (undisturbed.path / "loss.csv").read_text().splitlines()
    assert len(curve) == 1 + 6
    record = json.loads((undisturbed.path / "provenance.json").read_text())
    assert record["data"]["documents"] == len(TEXTS)
    assert record["versions"]["torch"] == torch.__version__
    assert not (undisturbed.path / "checkpoints").exists()


def test_same_spec_same_numbers_and_other_seed_others(place: Path, undisturbed: RunDirectory) -> None:
    assert_same_weights(train_in(place, "again", spec_in(place)), undisturbed)
    other = train_in(place, "again", spec_in(place, seed=1))
    assert other.path != undisturbed.path
    assert any(
        not torch.equal(a, b)
        for a, b in zip(weights(other).values(), weights(undisturbed).values(), strict=True)
    )


def test_a_finished_run_is_reused_and_a_damaged_one_is_named(place: Path) -> None:
    spec = spec_in(place, steps=2, seed=5)
    run = train_in(place, "reused", spec)
    written = (run.path / "finished.json").stat().st_mtime_ns
    assert train_in(place, "reused", spec).path == run.path
    assert (run.path / "finished.json").stat().st_mtime_ns == written
    [path] = run.path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(DamagedRunError, match=f"{run.path.name}.*safetensors"):
        train_in(place, "reused", spec)
    with pytest.raises(DamagedRunError):
        load_trained(run, spec)


def test_changed_data_is_another_run(place: Path, tmp_path: Path) -> None:
    spec = spec_in(place, steps=1, save_every=9)
    first = train_in(place, "data", spec)
    file = place / "corpus" / "train" / "0.txt"
    before = file.read_text()
    file.write_text(before + "# changed\n" * 20)
    try:
        assert train_in(place, "data", spec).path != first.path
    finally:
        file.write_text(before)


def test_killed_and_started_again_it_ends_with_the_same_weights(
    place: Path, undisturbed: RunDirectory
) -> None:
    config = place / "killed.yaml"
    values = dataclasses.asdict(spec_in(place))
    config.write_text(yaml.safe_dump(values))
    command = [
        sys.executable,
        "-m",
        "sinklora.train",
        "--config",
        str(config),
        "--runs",
        str(place / "killed"),
    ]
    environment = {**os.environ, "SINKLORA_CACHE": str(place / "shared"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(place.glob(f"killed/*/checkpoints/checkpoint-*/{COMPLETE}")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [work] = place.glob("killed/*/checkpoints")
    assert not list(place.glob("killed/*/finished.json"))
    behind = steps_behind(work.parent)
    assert behind > 0
    torn = work / "checkpoint-5"  # as if the kill had come while a later one was written
    torn.mkdir(exist_ok=True)
    (torn / "trainer_state.json").write_text("{")
    with steps_done() as steps:
        run = train_in(place, "killed", spec_in(place))
    assert steps == list(range(behind, 6))
    assert [path.parent for path in place.glob("killed/*/finished.json")] == [run.path]
    run.verify()
    assert_same_weights(run, undisturbed)
    assert (run.path / "loss.csv").read_bytes() == (undisturbed.path / "loss.csv").read_bytes()


def test_seconds_of_a_resumed_run_are_those_of_all_its_parts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops while its second checkpoint is written, and the first one says that it took an hour."""
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped here"):
        patch.setattr("sinklora.train.run.MarkComplete", StoppedAtSecondCheckpoint)
        train_in(place, "hours", spec_in(place))
    [first] = place.glob("hours/*/checkpoints/checkpoint-2")
    said = json.loads((first / SECONDS).read_text())
    assert 0 < said < 600
    (first / SECONDS).write_text("3600.0")
    hashes = {**json.loads((first / COMPLETE).read_text()), SECONDS: file_hash(first / SECONDS)}
    (first / COMPLETE).write_text(json.dumps(hashes))
    run = train_in(place, "hours", spec_in(place))
    assert 3600 < json.loads((run.path / "provenance.json").read_text())["seconds"] < 4200


class StoppedAtSecondCheckpoint(MarkComplete):
    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step > 2:
            raise RuntimeError("stopped here")
        super().on_save(args, state, control, **given)


def test_what_an_older_checkpoint_does_not_say_is_not_known(tmp_path: Path) -> None:
    assert SpentSeconds(None).with_those_before(5.0) == 5.0
    assert SpentSeconds(tmp_path).with_those_before(5.0) is None


def test_torn_checkpoints_are_removed(tmp_path: Path) -> None:
    for step, complete in ((2, True), (4, False), (6, True)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "a").write_text("x")
        if complete:
            digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # SHA-256 of "x"
            (folder / COMPLETE).write_text(json.dumps({"a": digest}))
    (tmp_path / "checkpoint-6" / "a").write_text("y")
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-6").exists()


def test_full_fine_tuning_and_the_loss_falls(place: Path) -> None:
    run = train_in(place, "full", spec_in(place, method="full", pattern="s2", steps=12, save_every=50))
    losses = [float(line.split(",")[1]) for line in _column(run.path / "loss.csv", ("step", "loss"))]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert load_trained(run, spec_in(place, method="full", pattern="s2")).training is False


def test_a_training_that_diverges_stops_there_and_never_finishes(place: Path) -> None:
    spec = spec_in(place, learning_rate=1e30, bf16=False)
    for _ in range(2):
        with pytest.raises(ArithmeticError, match=r"learning_rate=1e\+30: .* diverged at step [2-6] of 6"):
            train_in(place, "diverged", spec)
    assert not list(place.glob("diverged/*/finished.json"))


def test_a_machine_of_several_cards_trains_the_same_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without torchrun one process trains on one card; the Trainer alone would lay rows on each."""
    for name, value in {"is_available": True, "device_count": 2, "set_device": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    spec = TrainSpec(base="gpt2", batch_size=4, micro_batch_size=2, bf16=False)
    try:
        arguments = training_arguments(spec, 5, tmp_path, progress=False)
        assert arguments.train_batch_size * arguments.gradient_accumulation_steps == spec.batch_size
        assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # else later trainings have such a card


def test_retrieval_documents_stand_among_separate_ones(place: Path) -> None:
    """In each micro-batch there are rows of both, so that what one kind lacks would be seen."""
    changes = {"separate_documents": True, "recall_share": 0.5, "micro_batch_size": 2, "context": 128}
    run = train_in(place, "mixed", spec_in(place, **changes, steps=3))
    assert len((run.path / "loss.csv").read_text().splitlines()) == 1 + 3


def test_a_step_of_separate_documents_is_the_mean_over_its_labels(place: Path) -> None:
    """Their first tokens are none, so that rows have unequal numbers; however many are held at once."""
    changes = {"separate_documents": True, "recall_share": 0.5, "context": 128, "batch_size": 4, "steps": 1}
    losses = []
    for held in (1, 2, 4):
        spec = spec_in(place, **changes, micro_batch_size=held, bf16=False, warmup_steps=0)
        run = train_in(place, f"held-{held}", spec)
        losses.append(float(_column(run.path / "loss.csv", ("step", "loss"))[0].split(",")[1]))
    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    rows: Any = training_data(spec, tokenizer, cache=place / "cache", progress=False).rows
    assert len({int((rows[i]["labels"] != -100).sum()) for i in range(len(rows))}) > 1
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_more_than_half_of_the_rows_may_be_retrieval_documents(place: Path) -> None:
    spec = spec_in(place, recall_share=0.6)
    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    rows: Any = training_data(spec, tokenizer, cache=place / "cache", progress=False).rows
    lengths = {len(rows[index]["input_ids"]) for index in range(len(rows))}
    assert lengths == {spec.context}


def _column(path: Path, names: tuple[str, str]) -> list[str]:
    header, *lines = (line.split(",") for line in path.read_text().splitlines())
    return [",".join(line[header.index(name)] for name in names) for line in lines]


@pytest.mark.parametrize("separate", [False, True], ids=["joined", "separate"])
def test_gradient_checkpointing_changes_nothing(place: Path, separate: bool) -> None:
    spec = spec_in(place, steps=2, separate_documents=separate, bf16=False)
    plain = train_in(place, "plain", spec)
    checkpointed = train_in(place, "plain", dataclasses.replace(spec, gradient_checkpointing=True))
    for name, value in weights(plain).items():
        assert torch.allclose(value, weights(checkpointed)[name], atol=1e-5), name


@pytest.mark.parametrize("pattern", ["full", "sf"])
def test_a_frozen_base_in_bfloat16_trains_as_in_float32(place: Path, pattern: str) -> None:
    """Within bfloat16's rounding; its adapter is float32."""
    spec = spec_in(place, base_dtype="bfloat16", gradient_checkpointing=True, pattern=pattern, steps=4)
    run = train_in(place, "half", spec)
    precise = train_in(place, "half", dataclasses.replace(spec, base_dtype="float32"))
    assert run.path != precise.path
    rates = [
        [float(x.split(",")[1]) for x in _column(r.path / "loss.csv", ("step", "loss"))]
        for r in (run, precise)
    ]
    assert torch.allclose(*map(torch.tensor, rates), atol=0.03)
    assert rates[0][-1] < rates[0][0] - 0.3
    for name, value in weights(run).items():
        assert value.dtype == torch.float32, name
    assert type(load_trained(run, spec)).__name__ == "LoraPlusModel"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "lora"}, "method='lora'"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 3, "micro_batch_size": 2}, "micro_batch_size=2"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"recall_share": 1.0}, "recall_share=1.0"),
        ({"random_weights": True}, "random_weights=True"),
        ({"pattern": "sfx"}, "sfx"),
    ],
)
def test_bad_specs_are_named(place: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_in(place, **changes)


def test_a_missing_deepspeed_configuration_is_named_before_any_work(place: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        train_in(place, "deepspeed", spec_in(place, deepspeed="nowhere.json"))
    assert not (place / "deepspeed").exists()


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="learning_rat"):
        TrainSpec.from_dict({"learning_rat": 1.0})
    with pytest.raises(ValueError, match="sauce"):
        TrainSpec.from_dict({"corpus": {"sauce": "dir:x"}})


@pytest.mark.parametrize("path", sorted(Path("configs/train").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_configurations_are_specs(path: Path) -> None:
    spec = read_spec(path)
    assert spec.batch_size > 0 and spec.pattern_at(0, 1).group_size


def test_what_zero_divides_is_not_probed_and_that_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinklora.train.run.is_deepspeed_zero3_enabled", lambda: True)
    probed: list[object] = []
    monkeypatch.setattr("sinklora.hf.models.probe_model", probed.append)
    with pytest.warns(UserWarning, match="nothing checks whether its layers use the pattern"):
        trainable_model(spec_in(place, separate_documents=True))
    assert not probed


@pytest.mark.slow  # as are all trainings in several processes
def test_two_processes_train_one_run(place: Path) -> None:
    config = place / "two.yaml"
    config.write_text(yaml.safe_dump(dataclasses.asdict(spec_in(place, steps=2))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "sinklora.train", "--config", str(config), "--runs", str(place / "two")]
    environment = {**os.environ, "SINKLORA_CACHE": str(place / "shared"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    [finished] = place.glob("two/*/finished.json")
    RunDirectory(place / "two", json.loads((finished.parent / "spec.json").read_text()), "sf-64").verify()


@pytest.mark.parametrize(("warmup_steps", "told"), [(0, False), (1, False), (2, True), (20, True)])
def test_a_warm_up_that_outlasts_the_run_is_told(
    warmup_steps: int, told: bool, place: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The last step's rate, of a run of two, is below the one asked for where it warms up in two or more."""
    train_in(place, "warm", spec_in(place, steps=2, warmup_steps=warmup_steps))
    said = [str(warning.message) for warning in recwarn if "warmup_steps=" in str(warning.message)]
    assert len(said) == told
    if told:
        assert said[0].startswith(f"warmup_steps={warmup_steps}: the run has 2 steps, none of which comes to")


def test_a_curve_has_the_columns_that_were_logged_in_one_order() -> None:
    """Some ways to train log no norm of gradients; the last row of a log is of the whole run."""
    told = {"step": 1, "other": 0.5, "epoch": 0.1, "loss": 2.0}
    assert list(_curve([told, {"train_runtime": 3.0}])) == ["loss", "epoch", "step", "other"]
    assert len(_curve([told, {"train_runtime": 3.0}])) == 1
