"""The step that is timed is the step that training takes: every field, on every device."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinklora.evaluate.step_spec import StepCost, StepSpec, training_model
from sinklora.hf.device import default_device
from sinklora.reproduction.extension.equal_time import in_equal_time
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.extension.study import ExtensionStudy
from sinklora.reproduction.extension.timed_steps import step_costs, step_of
from sinklora.train.run import load_base
from sinklora.train.spec import TrainSpec
from sinklora.train.trainer import keeps_products
from step_shapes import model_folder

HALF = TrainSpec(base_dtype="bfloat16", gradient_checkpointing=True)  # as a packaged model is trained


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this a machine with a GPU ("cuda"), or one without ("cpu"), as far as is asked for it."""

    def choose(device: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")

    return choose


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            TrainSpec(bf16=False, micro_batch_size=2),
            StepSpec("data/base", 2048, batch=2, checkpointing=False, bf16=False),
        ),
        (HALF, StepSpec("data/base", 2048, batch=4, fused=True)),
        (
            TrainSpec(context=512, gradient_checkpointing=True),
            StepSpec("data/base", 512, batch=4, half_base=False),
        ),
        (
            TrainSpec(method="full", loss_chunk=64),
            StepSpec("data/base", 2048, method="full", batch=4, checkpointing=False, loss_chunk=64),
        ),
    ],
    ids=["float32", "bfloat16", "frozen in float32", "all trained"],
)
def test_a_step_is_the_trainings_in_every_field(
    spec: TrainSpec, expected: StepSpec, device: str, on: Callable[[str], None]
) -> None:
    on(device)
    step = step_of(spec, "sf")
    assert step == dataclasses.replace(expected, device=device)
    assert step.keeps_products == keeps_products(spec)


@pytest.mark.parametrize("spec", [TrainSpec(bf16=False), TrainSpec(), HALF, TrainSpec(method="full")])
def test_a_steps_frozen_base_is_held_as_the_trainings(spec: TrainSpec) -> None:
    base = load_base(dataclasses.replace(spec, context=64)).dtype
    step = dataclasses.replace(step_of(spec, "sf"), shape="base", context=64)
    named = training_model(step, "cpu", layers=1).named_parameters()
    assert {p.dtype for name, p in named if name.endswith("mlp.up_proj.weight")} == {base}


@pytest.mark.parametrize(
    ("group_size", "pattern", "named"),
    [
        (None, "sf", "sf"),
        (0.25, "sf", "sf"),
        (0.5, "sf", "sf(group_size=0.5)"),
        (0.5, "sf(sink_tokens=8)", "sf(sink_tokens=8, group_size=0.5)"),
        (0.5, "sf(group_size=0.125)", "sf(group_size=0.125)"),
        (0.5, "full", "full"),
    ],
)
def test_a_step_has_the_trainings_windows(group_size: float | None, pattern: str, named: str) -> None:
    assert step_of(TrainSpec(group_size=group_size), pattern).pattern == named


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [("llama2-7b", "llama2-7b"), ("llama2-7b-chat", "llama2-7b"), ("llama3-8b", "llama3-8b")],
)
def test_a_name_on_the_hub_has_a_shape(recipe: str, shape: str, on: Callable[[str], None]) -> None:
    on("cuda")
    step = step_of(read_recipe(f"configs/recipes/{recipe}.yaml").training, "sf")
    assert (step.shape, step.device, step.checkpointing, step.half_base) == (shape, "cuda", True, False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, on: Callable[[str], None]) -> dict[str, float | None]:
    """Seconds by pattern of steps on a GPU, where none is measured but alone."""
    seconds: dict[str, float | None] = {"full": 2.0, "sf": 1.0}

    def cost(step: StepSpec, repeats: int, *_: Any) -> StepCost:
        assert step.device == "cuda" and repeats > 1
        return StepCost(seconds[step.pattern], 2**30)

    on("cuda")
    monkeypatch.setattr("sinklora.evaluate.training_step._on_cuda", cost)
    monkeypatch.setattr("sinklora.evaluate.training_step.in_own_process", None)
    return seconds


def test_on_a_gpu_steps_are_compared_each_alone(
    alone: dict[str, float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two large models at once would not fit where one was trained."""
    recipe = read_recipe("configs/recipes/embedded.yaml")
    base = model_folder(tmp_path / "shape")
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, base=base))
    assert step_costs(recipe.training, ["full", "sf"], runs=tmp_path) == {
        name: StepCost(seconds, 2**30) for name, seconds in alone.items()
    }
    study = ExtensionStudy(recipe, ("full", "sf"), (0,), ("Table 1",), (512,))
    trained: list[TrainSpec] = []

    def measured(shorter: ExtensionStudy, **_: Any) -> None:
        trained.append(shorter.training)
        raise KeyboardInterrupt

    monkeypatch.setattr("sinklora.reproduction.extension.equal_time.measure", measured)
    with pytest.raises(KeyboardInterrupt):
        in_equal_time(study, ["sf"], runs=tmp_path)
    assert [spec.steps for spec in trained] == [recipe.training.steps // 2]
    alone["sf"] = None
    with pytest.raises(RuntimeError, match=r"sf, 2048 tokens.* does not fit"):
        in_equal_time(study, ["sf"], runs=tmp_path / "others")


def test_where_steps_are_timed_is_where_models_run() -> None:
    assert step_of(TrainSpec(), "sf").device == default_device()
