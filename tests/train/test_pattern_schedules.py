"""Pattern schedules: which pattern at which step, what it costs, and training that follows one."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import assert_close
from sinklora.attention.dispatch import attend
from sinklora.attention.kinds.rolled import RolledPattern
from sinklora.attention.patterns import (
    ABLATIONS,
    FULL,
    S2_WRAPPED,
    SF,
    SHORT,
    find_pattern,
    pattern_from_dict,
)
from sinklora.hf.models import current_pattern
from sinklora.train.pattern_schedules import PATTERN_SCHEDULES, PatternSchedule, find_schedule
from sinklora.train.run import train, trainable_model
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec, identity
from sinklora.train.trainer import FollowPatternSchedule

TWO = PatternSchedule(((0.75, SF), (0.25, FULL)))


def test_each_step_has_the_pattern_of_its_stage() -> None:
    assert [TWO.pattern_at(step, 8) for step in range(8)] == [SF] * 6 + [FULL] * 2
    assert TWO.pattern_at(0, 1) == SF
    with pytest.raises(ValueError, match="step=8"):
        TWO.pattern_at(8, 8)


def test_the_cost_is_the_mean_of_the_steps() -> None:
    assert TWO.density(2, 64, 8) == pytest.approx(0.75 * SF.density(2, 64) + 0.25)


@pytest.mark.parametrize("stages", [(), ((0.5, SF),), ((1.5, SF), (-0.5, FULL))])
def test_shares_must_add_up(stages: tuple[tuple[float, object], ...]) -> None:
    with pytest.raises(ValueError, match="stages="):
        PatternSchedule(stages)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PATTERN_SCHEDULES)
def test_named_schedules_cost_at_most_a_third_more_than_sf(name: str) -> None:
    ratio = PATTERN_SCHEDULES[name].density(4, 2048, 60) / SF.density(4, 2048)
    assert ratio <= 1.3


def test_names_are_looked_up_and_wrong_ones_listed() -> None:
    assert find_schedule("sf_growing") is PATTERN_SCHEDULES["sf_growing"]
    assert find_schedule("sf") is None
    with pytest.raises(ValueError, match="sf_growing"):
        find_schedule("sf_grown")


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    for number in range(4):
        text = "".join(f"def function_{number}_{i}(x):\n    return x * {i}\n\n\n" for i in range(60))
        (tmp_path / "corpus" / "train" / f"{number}.txt").write_text(text)
    return TrainSpec(
        base="data/base",
        corpus=CorpusSpec(f"dir:{tmp_path / 'corpus'}"),
        context=64,
        pattern="sf_growing",
        steps=4,
        batch_size=1,
        micro_batch_size=1,
        learning_rate=1e-3,
        warmup_steps=1,
    )


def test_training_follows_the_schedule(spec: TrainSpec, tmp_path: Path) -> None:
    model = trainable_model(spec)
    follow = FollowPatternSchedule(spec)
    seen = []
    for step in range(4):
        state = type("State", (), {"global_step": step, "max_steps": 4})()
        follow.on_step_begin(None, state, None, model=model)  # type: ignore[arg-type]
        seen.append(current_pattern(model))
    assert seen == [spec.attention_pattern(step) for step in range(4)]
    assert seen[0].group_size == 0.125 and seen[3] == FULL  # type: ignore[union-attr]
    # A context of 64 in windows of 8: the schedule differs from either pattern alone, in the last step.
    losses = {}
    for pattern in ("sf_growing", "sf(group_size=0.125)"):
        run = train(
            dataclasses.replace(spec, pattern=pattern),
            runs=tmp_path / "runs",
            cache=tmp_path / "cache",
            progress=False,
        )
        losses[pattern] = pd.read_csv(run.path / "loss.csv").loss.tolist()
    assert losses["sf_growing"][:3] == losses["sf(group_size=0.125)"][:3]
    assert losses["sf_growing"][3] != losses["sf(group_size=0.125)"][3]


def test_a_run_is_keyed_by_what_its_schedule_is(spec: TrainSpec) -> None:
    corpus = type("Corpus", (), {"sha256": "0"})()
    stages = identity(spec, corpus)["curriculum"]  # type: ignore[arg-type]
    assert stages[-1]["share"] == 0.22 and pattern_from_dict(stages[-1]["pattern"]) == FULL
    assert "curriculum" not in identity(dataclasses.replace(spec, pattern="sf"), corpus)  # type: ignore[arg-type]


# --- half of a shift ----------------------------------------------------------------------------------------


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, h, 32, 8, generator=generator, dtype=torch.float64) for h in (4, 2, 2)]


def test_both_halves_of_a_shift_are_wrapped_s2() -> None:
    query, key, value = tensors()
    assert_close(
        attend(query, key, value, RolledPattern()), attend(query, key, value, S2_WRAPPED), atol=1e-12
    )


def test_without_the_second_roll_outputs_belong_to_other_tokens() -> None:
    query, key, value = tensors()
    up = attend(query, key, value, ABLATIONS["shift_up"])
    both = attend(query, key, value, S2_WRAPPED)
    assert_close(up[:, 2:], both[:, 2:].roll(-4, 2), atol=1e-12)  # windows of 8 tokens
    assert_close(up[:, :2], both[:, :2], atol=1e-12)


def test_without_the_first_roll_the_outputs_of_plain_windows_move() -> None:
    query, key, value = tensors()
    back = attend(query, key, value, ABLATIONS["shift_back"])
    plain = attend(query, key, value, SHORT)
    assert_close(back[:, 2:], plain[:, 2:].roll(4, 2), atol=1e-12)
    assert_close(back[:, :2], plain[:, :2], atol=1e-12)


def test_rolls_that_do_not_fit_are_named() -> None:
    query, key, value = (x[:, :, :30] for x in tensors())
    with pytest.raises(ValueError, match="divide the row of 30"):
        attend(query, key, value, ABLATIONS["shift_up"])
    with pytest.raises(ValueError, match="document_ids"):
        ids = torch.arange(32)[None] // 16
        attend(*tensors(), ABLATIONS["shift_up"], document_ids=ids)


def test_models_train_with_half_of_a_shift(spec: TrainSpec) -> None:
    ids = torch.arange(3, 67)[None]
    logits = {}
    for name in ("shift_up", "shift_back", "s2_wrapped"):
        model = trainable_model(dataclasses.replace(spec, pattern=name)).train()
        logits[name] = model(input_ids=ids, use_cache=False).logits
        assert current_pattern(model) == find_pattern(name)
    assert not torch.allclose(logits["shift_up"], logits["shift_back"])
    assert not torch.allclose(logits["shift_up"], logits["s2_wrapped"])


def test_the_group_size_of_a_spec_is_for_patterns_with_windows() -> None:
    def used(pattern: str) -> object:
        return TrainSpec(pattern=pattern, group_size=0.125).attention_pattern()

    assert used("full") == FULL
    assert used("sf") == dataclasses.replace(SF, group_size=0.125)
    assert used("sf(group_size=0.5)") == dataclasses.replace(SF, group_size=0.5)
    assert used("sf_then_full") == SF
