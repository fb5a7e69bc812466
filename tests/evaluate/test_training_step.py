"""Training steps: their memory predicted and measured, their FLOPs by hand, the longest that fits."""

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig
from typer.testing import CliRunner

import sinklora.evaluate.training_step as efficiency
from measured import measured_rows
from sinklora.cli import application
from sinklora.evaluate.memory import (
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
from sinklora.reproduction.efficiency.claims import training_cost_claims
from sinklora.reproduction.efficiency.longest_context import (
    context_verdict,
    ladder_claims,
    longest,
    longest_contexts,
    training_context,
)
from sinklora.reproduction.efficiency.study import (
    BASELINE,
    EAGER_STEP,
    SF,
    STEPS,
    EfficiencyStudy,
    compare,
    computes_in_bfloat16,
    efficiency_table,
)
from sinklora.reproduction.report.claims import Claim
from sinklora.train.pattern_schedules import PATTERN_SCHEDULES

FORWARD = 2  # FLOPs of a multiplication and its addition


def model_folder(folder: Path, shape: str = "base", layers: int = 1, **changes: object) -> str:
    """A folder that gives a shape with few layers: what a step takes of each is the same (tested below)."""
    sizes = {**SHAPES[shape], "num_hidden_layers": layers, "use_cache": False, **changes}
    LlamaConfig(**sizes).save_pretrained(folder)  # type: ignore[arg-type]
    return str(folder)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`base` with one of its four layers."""
    return model_folder(tmp_path_factory.mktemp("one-layer"))


# --- memory -------------------------------------------------------------------------------------------------


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


# --- the longest context ------------------------------------------------------------------------------------


@given(limit=st.integers(0, 2000), unit=st.integers(1, 300), near=st.integers(0, 3000))
def test_bisection_finds_the_last_that_fits(limit: int, unit: int, near: int) -> None:
    asked: list[int] = []

    def fits(tokens: int) -> bool:
        asked.append(tokens)
        return tokens <= limit

    most = 1000
    assert longest(fits, unit=unit, most=most, near=near) == min(limit, most) // unit * unit
    assert len(set(asked)) == len(asked) and all(0 < tokens <= most for tokens in asked)


def test_a_good_guess_saves_measurements() -> None:
    asked: list[int] = []
    assert longest(lambda n: asked.append(n) or n <= 7777, unit=1, most=10**6, near=7776) == 7777  # type: ignore[func-returns-value]
    assert len(asked) == 4  # one step up fits, two more do not, one between


@pytest.fixture(scope="module")
def measured_steps(tmp_path_factory: pytest.TempPathFactory) -> partial[pd.DataFrame]:
    """The search for the longest context over the steps of one small model, each measured once.

    Vocabulary and heads are such that the few megabytes of noise in resident memory do not count, and that
    scores do.
    """
    shape = model_folder(tmp_path_factory.mktemp("wide"), vocab_size=8192, num_attention_heads=16)
    return partial(
        longest_contexts,
        StepSpec(shape, 256),
        unit=1024,
        most=1024,
        methods=[BASELINE, SF, EAGER_STEP],
        runs=tmp_path_factory.mktemp("runs"),
        progress=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [SF, BASELINE, EAGER_STEP])
def test_predicted_memory_is_what_is_measured(method: str, measured_steps: partial[pd.DataFrame]) -> None:
    spec = dataclasses.replace(measured_steps.args[0], context=1024, **STEPS[method])
    found = measured(spec, runs=measured_steps.keywords["runs"], repeats=1, time_it=False)
    assert found.seconds is None
    assert found.peak_bytes == pytest.approx(estimate(spec).peak_bytes, rel=0.1)


@pytest.mark.slow
def test_the_longest_contexts_of_methods(measured_steps: partial[pd.DataFrame]) -> None:
    frame = measured_steps(memory_gib=1)
    assert frame["longest context (tokens)"].tolist() == [1024] * 3
    assert (frame["peak (GiB)"] < 1).all()
    assert frame["ratio to LoRA+"].tolist() == [1] * 3
    # A step fits up to its own peak, whatever was predicted.
    full, sf, scores = frame["peak (GiB)"]
    assert max(full, sf) < scores
    at_its_peak = measured_steps(memory_gib=max(full, sf), methods=[BASELINE, SF])
    assert at_its_peak["longest context (tokens)"].tolist() == [1024, 1024]
    below = measured_steps(memory_gib=full - 2**-30, methods=[BASELINE, SF])
    assert below["longest context (tokens)"][0] == 0
    assert training_context(frame, SF, [512, 1024, 2048]) == 1024
    assert "SF-Attn fits 1024 tokens" in context_verdict(frame)
    with pytest.raises(ValueError, match="allow more memory"):
        training_context(frame, SF, [2048])
    with pytest.raises(ValueError, match="unit=0"):
        longest(lambda _: True, unit=0, most=1, near=1)


def ladder(*values: float) -> list[Claim]:
    """Losses of 32 pieces at 512, 1024 and 2048 tokens, two seeds that agree."""
    pieces = np.random.default_rng(0).normal(0, 0.3, 32)
    by_context = {
        context: {"sf": [(pieces + value).tolist()] * 2}
        for context, value in zip((512, 1024, 2048), values, strict=True)
    }
    return ladder_claims(measured_rows(by_context, test_set="Table 3"), "Table 3", valid=True, model="small")


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ((3.0, 2.0, 1.0), "held"),
        ((3.0, 2.0, 2.5), "held in part"),
        ((1.0, 2.0, 2.5), "did not hold"),
        ((2.0, 2.0, 2.0), "not decided"),
    ],
)
def test_the_ladder_says_whether_each_step_helps(values: tuple[float, ...], outcome: str) -> None:
    whole, *steps = ladder(*values)
    assert (whole.outcome, whole.sentence) == (
        outcome,
        "with SF-Attn perplexity falls with every longer context",
    )
    assert [claim.estimate for claim in steps] == pytest.approx(
        [values[0] - values[1], values[1] - values[2]]
    )


# --- the comparison -----------------------------------------------------------------------------------------


def hand_rows() -> pd.DataFrame:
    lines = [
        (BASELINE, 4.0, 2.0, 2.0, 10.0, 8.0),
        (SF, 2.0, 2.5, 2.0, 5.0, 4.0),
        ("LoRA+, all scores in memory", 8.0, 10.0, 9.0, 10.0, 8.0),
    ]
    columns = ["method", "seconds", "peak_gib", "predicted_gib", "counted_tflop", "needed_tflop"]
    return pd.DataFrame(lines, columns=columns).assign(tokens=64)


def test_ratios_and_schedules_by_hand() -> None:
    table = efficiency_table(hand_rows(), ["sf_then_full"]).set_index("method")
    assert table.loc[SF, "time, ratio to LoRA+"] == 0.5
    assert table.loc[SF, "memory, ratio"] == 1.25
    assert table.loc[SF, "ideal ratio (FLOPs)"] == 0.5
    assert table.loc[SF, "prediction off (%)"] == pytest.approx(-20)
    ours = table.loc["LoRA+, sf_then_full (ours, from its steps)"]
    assert PATTERN_SCHEDULES["sf_then_full"].stages[1][0] == 0.1
    assert ours["seconds"] == pytest.approx(0.9 * 2 + 0.1 * 4)
    assert ours["peak (GiB)"] == 2.5
    assert len(efficiency_table(hand_rows(), ["sf_growing"])) == 3, "its windows were not measured"


def test_claims_compare_with_the_paper() -> None:
    claims = training_cost_claims(hand_rows(), "base")
    assert [(claim.estimate, claim.outcome) for claim in claims] == [
        (pytest.approx(2.0), "held"),
        (pytest.approx(0.8), "did not hold"),
        (pytest.approx(4.0), "held"),
        (pytest.approx(4.0), "held"),
    ]
    assert len(training_cost_claims(hand_rows().iloc[:2], "base")) == 2
    unknown = training_cost_claims(hand_rows().assign(seconds=float("nan")), "base")
    assert unknown[0].reason == "there is no length that both fit"


def test_steps_are_measured_once_and_left_out_beyond_the_limit(
    one_layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[StepSpec] = []

    def fake(spec: StepSpec, repeats: int, environment: dict[str, str]) -> StepCost:
        calls.append(spec)
        return StepCost(1.0, 2**30)

    def fake_rounds(_: str, specs: list[dict[str, object]], rounds: int, **__: object) -> list[list[float]]:
        taken.append(len(specs))
        return [[9.0, 1.0, 0.5] for _ in specs]

    taken: list[int] = []
    monkeypatch.setattr(efficiency, "_in_own_process", fake)
    monkeypatch.setattr(efficiency, "in_own_process", fake_rounds)
    study = EfficiencyStudy(StepSpec(one_layer), (64,), 0.03, ("full fine-tuning", BASELINE, SF), repeats=3)
    rows = compare(study, runs=tmp_path, progress=False).set_index("method")
    assert taken == [2], "those that fit take their steps in turn; the time is the median of the rounds"
    assert pd.isna(rows.loc["full fine-tuning", "seconds"]), "training all takes more than 0.03 GiB"
    assert rows.loc[SF, "seconds"] == 1 and rows.loc[SF, "peak_gib"] == 1
    assert rows.predicted_gib.notna().all()
    counted = len(calls)
    compare(study, runs=tmp_path, progress=False)
    assert len(calls) == counted, "finished measurements are read back"
    spec = dataclasses.replace(study.step, context=32)
    assert measured(spec, runs=tmp_path, repeats=1, time_it=False) == StepCost(None, 2**30)


def test_on_a_gpu_each_step_is_measured_alone(
    one_layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficiency, "_in_own_process", lambda spec, *_: StepCost(len(spec.pattern), 2**30))
    step = StepSpec(one_layer, device="cuda")
    rows = compare(EfficiencyStudy(step, (64,), 1.0, (BASELINE, SF)), runs=tmp_path, progress=False)
    assert list(rows.seconds) == [4, 2], "full, sf"


def test_the_dtype_of_steps_is_the_fastest_or_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("sinklora.reproduction.efficiency.study.fast_dtype", lambda _, it=fastest: it)
        assert computes_in_bfloat16("fastest", "cpu") is (fastest is torch.bfloat16)
    assert computes_in_bfloat16("bfloat16", "cpu") and not computes_in_bfloat16("float32", "cuda")
    with pytest.raises(ValueError, match="dtype='half'"):
        computes_in_bfloat16("half", "cpu")


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contexts": ()}, "contexts="),
        ({"limit_gib": 0}, "limit_gib=0"),
        ({"schedules": ("later",)}, "later"),
        ({"methods": ("LoRA+",)}, "missing"),
        ({"methods": (*STEPS, "LoRA++")}, "LoRA\\+\\+"),
    ],
)
def test_wrong_studies_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EfficiencyStudy(**{"step": StepSpec(), "contexts": (64,), "limit_gib": 1.0} | changes)  # type: ignore[arg-type]


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
