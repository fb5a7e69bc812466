"""Training steps: their memory predicted and measured, their FLOPs by hand."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import sinklora.evaluate.training_step as efficiency
from sinklora.cli import application
from sinklora.evaluate.memory import (
    KEEP_MEMORY,
    TensorMemory,
    reset_resident_peak,
    resident_bytes,
    resident_peak_bytes,
)
from sinklora.evaluate.step_estimate import _estimate, estimate
from sinklora.evaluate.step_spec import (
    EAGER,
    StepCost,
    StepEstimate,
    StepSpec,
    training_model,
    training_step,
)
from sinklora.evaluate.training_step import measured, measured_in_turn
from sinklora.hf.model_shapes import SHAPES, random_model, shape_config
from step_shapes import model_folder

FORWARD = 2  # FLOPs of a multiplication and its addition


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`base` with one of its four layers."""
    return model_folder(tmp_path_factory.mktemp("one-layer"))


def test_tensors_are_counted_while_they_live() -> None:
    with TensorMemory() as memory:
        first = torch.zeros(1000)  # 4000 bytes, 4096 as allocated
        assert memory.now == 4096
        view = first.view(10, 100)
        assert memory.now == 4096, "a view takes nothing"
        second = first + 1
        assert memory.now == memory.peak == 8192
        del second
        assert (memory.now, memory.peak) == (4096, 8192)
        del first
        assert memory.now == 4096, "the view keeps it"
        del view
        assert (memory.now, memory.peak) == (0, 8192)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets go of an earlier peak")
def test_a_resident_peak_is_of_what_came_after_its_reset() -> None:
    unit = 2**26  # far above what the interpreter itself takes and frees meanwhile
    torch.ones(8 * unit // 4)
    reset_resident_peak()
    before = resident_bytes()
    held = torch.ones(2 * unit // 4)
    assert resident_bytes() - before == pytest.approx(2 * unit, rel=0.1)
    del held
    assert resident_peak_bytes() - before == pytest.approx(2 * unit, rel=0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets go of an earlier peak")
def test_what_a_process_keeps_of_freed_memory_hides_no_peak() -> None:
    program = """
import torch
from sinklora.evaluate.memory import peak_of_a_fork

def prepare():
    freed = [torch.ones(2**18) for _ in range(64)]  # 64 pieces of 1 MiB
    freed.clear()
    return lambda: [torch.ones(2**18) for _ in range(48)]

print(peak_of_a_fork(prepare) / 2**20)
"""
    command, environment = [sys.executable, "-c", program], {**os.environ, **KEEP_MEMORY}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    assert float(done.stdout) == pytest.approx(48, abs=2)


def test_a_system_without_peaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for ask in (reset_resident_peak, resident_peak_bytes):
        with pytest.raises(RuntimeError, match=r"sys.platform='darwin': .* Linux only"):
            ask()


def test_windows_take_no_more_memory_than_full_attention_and_scores_do(one_layer: str) -> None:
    peaks = {name: estimate(StepSpec(one_layer, 4096, name)).peak_bytes for name in ("full", "sf", "eager")}
    assert peaks["sf"] < 1.1 * peaks["full"]
    assert peaks["eager"] > 4 * peaks["full"]


def test_what_is_trained_takes_sixteen_bytes_a_number(tmp_path: Path) -> None:
    # Weights, gradients and two moments in float32; a row of 8 tokens takes next to nothing.
    shape = model_folder(tmp_path, "llama2-7b")
    numbers = sum(p.numel() for p in random_model(shape, 8, device="meta").parameters())
    assert estimate(StepSpec(shape, 8, "full", "full")).peak_bytes == pytest.approx(16 * numbers, rel=0.002)


# --- FLOPs --------------------------------------------------------------------------------------------------


def test_needed_flops_by_hand() -> None:
    tokens = 64
    block = 4 * 256 * 256 + 3 * 256 * 768  # projections, feed-forward network
    head = 256 * 4096
    linear = FORWARD * tokens * 4 * block * 3  # four layers; forward, gradients of input and of weight
    # The loss takes the 63 predicted positions, its logits twice; the model makes those of the last position.
    logits = FORWARD * head * (63 * 4 + 1)
    pairs = tokens * (tokens + 1) // 2
    attention = FORWARD * 64 * 4 * pairs * 7 * 4  # head size, heads, products forward and backward, layers
    spec = StepSpec("base", tokens, "full", "full", checkpointing=False)
    assert estimate(spec).needed_flops == linear + logits + attention


def test_a_fused_step_computes_no_product_twice(one_layer: str) -> None:
    """By hand: LoRA of rank 8 on four projections, of which gradient and input go through each matrix."""
    tokens, width, head = 64, 256, 256 * 4096
    block = 4 * width * width + 3 * width * 768
    lora = 4 * 2 * 8 * width
    linear = FORWARD * tokens * (2 * block + 3 * lora)  # frozen ones have no gradient of their own
    again = FORWARD * tokens * lora // 2  # LoRA's second products are not worth keeping
    logits = FORWARD * head * (63 * 3 + 1)
    attention = FORWARD * 64 * 4 * tokens * (tokens + 1) // 2 * 7
    spec = StepSpec(one_layer, tokens, "full", fused=True)
    assert estimate(spec).needed_flops == linear + again + logits + attention


def test_only_on_the_cpu_a_fused_step_keeps_its_products(one_layer: str) -> None:
    kept, again = (
        estimate(StepSpec(one_layer, 64, "full", fused=True, device=device)) for device in ("cpu", "cuda")
    )
    assert kept.needed_flops < again.needed_flops


class ProductDtypes(TorchDispatchMode):
    """The dtypes of all matrix products while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.found.add(out.dtype)
        return out


@pytest.mark.parametrize("method", ["lora_plus", "full"])
@pytest.mark.parametrize(("bf16", "products"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_step_computes_in_the_dtype_of_its_training(
    one_layer: str, method: str, bf16: bool, products: torch.dtype
) -> None:
    spec = StepSpec(one_layer, 32, "sf", method, checkpointing=False, bf16=bf16)
    model = training_model(spec, "cpu")
    step = training_step(spec, model)
    with ProductDtypes() as dtypes:
        step()
    assert products in dtypes.found
    assert bf16 or dtypes.found == {torch.float32}
    frozen = torch.bfloat16 if bf16 else torch.float32
    assert {p.dtype for p in model.parameters() if not p.requires_grad} <= {frozen}


def test_eager_attention_needs_what_full_attention_needs(one_layer: str) -> None:
    full, eager = (estimate(StepSpec(one_layer, 64, name)) for name in ("full", "eager"))
    assert eager.needed_flops == full.needed_flops


@pytest.mark.slow
def test_every_layer_takes_the_same(tmp_path: Path) -> None:
    found = [
        dataclasses.astuple(estimate(StepSpec(model_folder(tmp_path, layers=n), 64, "sf"))) for n in (1, 2, 4)
    ]
    for one, two, four in zip(*found, strict=True):
        assert one < two and four - two == 2 * (two - one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora_plus", "full"])
def test_many_layers_are_estimated_from_few(tmp_path: Path, method: str) -> None:
    spec = StepSpec(model_folder(tmp_path, layers=6), 64, "sf", method)
    found, whole = estimate(spec), _estimate(spec, 6)
    assert dataclasses.astuple(found)[1:] == dataclasses.astuple(whole)[1:]
    # Where the peak lies elsewhere with few layers, it is a little more than what they say.
    assert found.peak_bytes == pytest.approx(whole.peak_bytes, rel=2e-3)


def seven_billion(folder: Path, context: int, pattern: str) -> StepEstimate:
    """The estimate for `llama2-7b`, its 32 layers from models of one and of two."""
    one, two = (
        dataclasses.astuple(estimate(StepSpec(model_folder(folder, "llama2-7b", n), context, pattern)))
        for n in (1, 2)
    )
    return StepEstimate(*(first + 31 * (second - first) for first, second in zip(one, two, strict=True)))


@pytest.mark.slow
def test_sf_needs_half_of_full_attention_at_65k_tokens_and_seven_billion_parameters(tmp_path: Path) -> None:
    full, sf = (seven_billion(tmp_path, 65536, name) for name in ("full", "sf"))
    assert 1.9 < full.needed_flops / sf.needed_flops < 2.1
    assert sf.peak_bytes < 80 * 2**30


# --- specs and shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": "llama9"}, "shape='llama9'"),
        ({"pattern": "sff"}, "'sff'"),
        ({"method": "lora"}, "method='lora'"),
        ({"context": 0}, "context=0"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"fused": True, "bf16": False}, "fused=True: needs .* bf16=True"),
        ({"fused": True, "half_base": False}, "fused=True: needs .* half_base=True"),
    ],
)
def test_wrong_steps_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StepSpec(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "billions"),
    [("llama2-7b", 6.738), ("llama2-70b", 68.977), ("llama3-8b", 8.030), ("llama-100m", 0.0975)],
)
def test_shapes_have_the_parameters_of_their_names(shape: str, billions: float) -> None:
    parameters = sum(p.numel() for p in random_model(shape, 128, device="meta").parameters())
    assert parameters / 1e9 == pytest.approx(billions, rel=2e-3)


def test_the_embedded_base_has_its_shape() -> None:
    stored, named = json.loads(Path("data/base/config.json").read_text()), shape_config("base", 512)
    for name in SHAPES["base"]:
        assert getattr(named, name) == stored[name], name


# --- measurements -------------------------------------------------------------------------------------------


def test_memory_that_others_held_is_no_result(
    one_layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[StepCost] = []
    monkeypatch.setattr(efficiency, "_in_own_process", lambda *_: found.pop(0))
    monkeypatch.setattr(efficiency, "RETRY_SECONDS", 0)
    monkeypatch.setattr(efficiency, "_device_bytes", lambda: 2**40)
    spec, crowded, empty = (
        StepSpec(one_layer, 32, device="cuda"),
        StepCost(None, None, False),
        StepCost(None, None),
    )

    found[:] = [crowded, crowded]
    with pytest.raises(RuntimeError, match="run it again when they are gone"):
        measured(spec, runs=tmp_path)
    found[:] = [crowded, StepCost(1.0, 2**30)]
    assert measured(spec, runs=tmp_path) == StepCost(1.0, 2**30), "not kept, tried again"

    found[:] = [empty]
    longer = dataclasses.replace(spec, context=64)
    assert [measured(longer, runs=tmp_path) for _ in range(2)] == [empty, empty], "alone: kept"
    monkeypatch.setattr(efficiency, "_device_bytes", lambda: 2**20)
    found[:] = [crowded]
    longest_step = dataclasses.replace(spec, context=128)
    assert [measured(longest_step, runs=tmp_path).peak_bytes for _ in range(2)] == [None, None], "never fits"


@pytest.mark.slow
def test_steps_in_turn_are_measured_once_and_kept_by_round(one_layer: str, tmp_path: Path) -> None:
    """In a process of their own, each step once a round; other rounds are another measurement."""
    specs = [StepSpec(one_layer, 32, pattern, checkpointing=False) for pattern in ("full", "sf")]
    used: list[Path] = []
    first = measured_in_turn(specs, runs=tmp_path, rounds=3, used=used)
    assert [len(seconds) for seconds in first] == [3, 3] and min(map(min, first)) > 0
    assert measured_in_turn(specs, runs=tmp_path, rounds=3, used=used) == first, "read back"
    assert used == [used[0]] * 2 and used[0].name.startswith("step-")
    kept = json.loads((used[0] / "rounds.json").read_text())
    assert kept["seconds"] == first and kept["provenance"]["hardware"]


def test_other_code_takes_its_own_time(
    one_layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds are measured again where the sources of a step changed, whatever was committed."""
    made: list[str] = []

    def alone(*_: Any) -> StepCost:
        made.append("alone")
        return StepCost(1.0, 2**30)

    def in_turn(*_: Any, **__: Any) -> list[list[float]]:
        made.append("in turn")
        return [[1.0]]

    monkeypatch.setattr(efficiency, "_in_own_process", alone)
    monkeypatch.setattr(efficiency, "in_own_process", in_turn)
    spec = StepSpec(one_layer, 32)
    for sources, expected in (("first", 2), ("first", 2), ("second", 4), ("first", 4)):
        monkeypatch.setattr(efficiency, "contents_hash", lambda *_, now=sources: now)
        measured(spec, runs=tmp_path, time_it=False)
        measured_in_turn([spec], runs=tmp_path)
        assert len(made) == expected
    assert made == ["alone", "in turn"] * 2


def files_run_by(work: Callable[[], object]) -> set[str]:
    """The package's files with functions that `work` calls the second time: the first imports modules."""
    work()
    package, found = efficiency.PACKAGE, set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    inside = [Path(name) for name in found if Path(name).is_relative_to(package)]
    return {path.relative_to(package).as_posix() for path in inside}


@pytest.mark.parametrize(
    "changes",
    [{"fused": True}, {"half_base": False}, {"method": "full", "pattern": "full"}, {"pattern": EAGER}],
    ids=str,
)
def test_all_that_a_step_runs_is_among_its_sources(one_layer: str, changes: dict[str, Any]) -> None:
    """But for what checks arguments and finds a model's folder."""
    spec = StepSpec(one_layer, **{"context": 64, **changes})
    run = files_run_by(lambda: efficiency.in_turn([spec], rounds=1))
    assert {"evaluate/step_spec.py", "evaluate/timing.py", "train/loss.py"} <= run
    others = {name for name in run if not name.startswith(efficiency.STEP_SOURCES)}
    assert {name.partition("/")[0] for name in others} <= {"records", "pretrained", "ranges.py"}


def test_each_step_has_its_turn_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def step_of(spec: StepSpec, model: str) -> Callable[[], None]:
        return lambda: taken.append(f"{model}, {spec.pattern}")

    monkeypatch.setattr(efficiency, "training_model", lambda spec, device: f"on {device}")
    monkeypatch.setattr(efficiency, "training_step", step_of)
    found = efficiency.in_turn([StepSpec(context=32, pattern=name) for name in ("full", "sf")], rounds=2)
    assert taken == ["on cpu, full", "on cpu, sf"] * 3, "a first round is not timed"
    assert [len(seconds) for seconds in found] == [2, 2]


@pytest.mark.gpu
def test_a_crowded_device_leaves_its_results_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficiency, "IDLE_BYTES", 0)  # as if this process's own libraries were another's
    too_long = StepSpec("base", 2**19, EAGER, device="cuda")  # two terabytes of scores
    assert efficiency.measure(too_long, repeats=1) == StepCost(None, None, certain=False)
    monkeypatch.setattr(efficiency, "IDLE_BYTES", efficiency._device_bytes())
    assert efficiency.measure(too_long, repeats=1) == StepCost(None, None)


def test_the_command_line_predicts_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = CliRunner().invoke(application, ["estimate", "base", "2048", "sf"])
    assert predicted.exit_code == 0
    assert predicted.output.startswith("base, 2048 tokens, sf, lora_plus, cpu: ")
    assert "GiB at its peak" in predicted.output and predicted.output.endswith(" TFLOP\n")

    found = [StepCost(0.25, 2**29), StepCost(1.5, 2**30), StepCost(None, None), StepCost(None, None)]
    monkeypatch.setattr(efficiency, "_in_own_process", lambda *_: found.pop(0))
    step = ["measure", "base", "64", "sf", "--method", "full", "--runs", str(tmp_path)]
    measured = CliRunner().invoke(application, step)
    assert measured.output == "base, 64 tokens, sf, full, cpu: 0.50 GiB at its peak, 1.500 s\n"
    assert measured.exit_code == 0 and CliRunner().invoke(application, step).output == measured.output
    crowded = CliRunner().invoke(application, [*step, "--batch", "2"])
    assert crowded.exit_code == 1 and crowded.output.endswith("does not fit\n")
