"""Training steps compared: measured once, ratios by hand, what is claimed of them, the longest that fits."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sinklora.evaluate.training_step as efficiency
from measured import measured_rows
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepCost, StepSpec
from sinklora.evaluate.training_step import measured
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
from step_shapes import model_folder


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`base` with one of its four layers."""
    return model_folder(tmp_path_factory.mktemp("one-layer"))


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
    falls = [values[0] - values[1], values[1] - values[2]]
    assert [claim.estimate for claim in steps] == pytest.approx(falls)
    assert whole.estimate == pytest.approx(min(falls)), "the least of them"


@pytest.mark.parametrize(("untrained", "outcome"), [(2.0, "held"), (0.9, "did not hold")])
def test_the_ladder_is_held_against_no_training(untrained: float, outcome: str) -> None:
    """Which may fall with a longer context as well, and is read with the base in windows of its own."""
    pieces = np.random.default_rng(0).normal(0, 0.3, 32)
    level = {
        name: [(pieces + value).tolist()] for name, value in (("base", untrained), ("yarn", 2.0), ("sf", 1.0))
    }
    rows = measured_rows(
        {512: {"base": level["base"], "sf": level["base"]}, 2048: {"yarn": level["yarn"], "sf": level["sf"]}},
        test_set="Table 3",
        untrained=("base", "yarn"),
    )
    whole, step, base, yarn = ladder_claims(rows, "Table 3", valid=True, model="small")
    assert (base.outcome, base.sentence) == (
        outcome,
        "with SF-Attn 2048 tokens are better than no training (base)",
    )
    assert base.estimate == pytest.approx(untrained - 1) and base.restated
    assert (yarn.outcome, yarn.estimate) == ("held", pytest.approx(1.0))
    assert (whole.outcome, step.estimate) == (step.outcome, pytest.approx(untrained - 1))


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
