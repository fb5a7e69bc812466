"""Training specs: what a run is known by does not change, and what cannot be trained is refused."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import SchedulerType, get_scheduler

from recipes import recipe_of
from sinklora.evaluate.step_spec import StepSpec
from sinklora.records.files import json_hash
from sinklora.reproduction.base_model.study import BaseRecipe
from sinklora.reproduction.cache.study import CacheStudy
from sinklora.reproduction.efficiency.study import EfficiencyStudy
from sinklora.reproduction.extension.study import ExtensionStudy
from sinklora.reproduction.extension.texts import TextSet
from sinklora.reproduction.retrieval.study import RetrievalStudy
from sinklora.train.examples import ExampleSource
from sinklora.train.instruction_spec import InstructionSpec
from sinklora.train.settings import LR_SCHEDULES
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec, base_hash, identity

# Hashes of the keys that the first runs were made under; every one of them must be found again.
GOLDEN: dict[str, tuple[dict[str, Any], str]] = {
    "default": ({}, "af698e1a15fd9e84040f6999b522e1ecf9f57cb435194314bd6eb39df46a415e"),
    "fields": (
        {"pattern": "sf(shifted=0.25)", "lr_schedule": "cosine", "recall_share": 0.25},
        "c387505dcf3e5b8266aecce8f0bbf5a8fdefad76aebaf14f80cddb1834f74076",
    ),
    "then full": (
        {"pattern": "sf_then_full"},
        "dbd8967576a0e4a52ee248b5aa61dd4ff423cb739e876911b56dd367c112ab71",
    ),
    "growing": (
        {"pattern": "sf_growing", "steps": 10},
        "3e038f09819d2099a618484efd5ef2992f988e2e2ca83e5258398c797c11f021",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_runs_keep_their_keys(name: str) -> None:
    changes, key = GOLDEN[name]
    corpus: Any = SimpleNamespace(sha256="0" * 64)
    assert json_hash(identity(TrainSpec(base="gpt2", **changes), corpus)) == key


def test_a_base_in_bfloat16_is_another_run() -> None:
    """By default a packaged one is; in float32 it is found under the key that its first runs had."""
    corpus: Any = SimpleNamespace(sha256="0" * 64)
    packaged, plain = TrainSpec(base="smollm2-135m"), TrainSpec(base="gpt2")
    assert (packaged.frozen_dtype, plain.frozen_dtype) == ("bfloat16", "float32")
    for other in ({"bf16": False}, {"method": "full"}, {"base_dtype": "float32"}):
        assert dataclasses.replace(packaged, **other).frozen_dtype == "float32"
    first = dataclasses.replace(packaged, base_dtype="float32")
    assert json_hash(identity(first, corpus)) == (
        "3c3768d6e9d378172cc72d59f9248f5b15095be0fab91ff4e59e5717b69c9477"
    )
    for spec, same in ((packaged, packaged), (plain, dataclasses.replace(plain, base_dtype="auto"))):
        half = dataclasses.replace(spec, base_dtype="bfloat16")
        assert (identity(half, corpus) == identity(same, corpus)) == (same is packaged)


@pytest.mark.parametrize("other", [{"bf16": False}, {"method": "full"}])
def test_what_is_trained_is_never_in_bfloat16(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="base_dtype='bfloat16': needs method='lora_plus' and bf16=True"):
        TrainSpec(base_dtype="bfloat16", **other)


def test_a_step_keeps_its_key() -> None:
    key = "9519ec6d1f69e1a251195134fdf89be0a57fd27c7d1a20177752e60227e12ba7"
    assert json_hash(StepSpec().key()) == key
    others = (StepSpec(fused=True), StepSpec(bf16=False), StepSpec(half_base=False))
    assert len({json_hash(other.key()) for other in others} - {key}) == 3


def test_a_configuration_with_an_exponent_trains_at_that_rate() -> None:
    written = Path("configs/train/base-2048-sf.yaml").read_text()
    assert "learning_rate: 0.0003" in written
    values = yaml.safe_load(written.replace("learning_rate: 0.0003", "learning_rate: 3e-4"))
    assert values["learning_rate"] == "3e-4"  # YAML 1.1 reads text
    assert TrainSpec.from_dict(values) == TrainSpec.from_dict(yaml.safe_load(written))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule": "cosine"}, "TrainSpec has no key 'schedule'; did you mean 'lr_schedule'"),
        ({"corpus": {"sauce": "dir:x"}}, "corpus: CorpusSpec has no key 'sauce'; did you mean 'source'"),
        ({"corpus": {"total_characters": "1e6"}}, "corpus: total_characters='1e6': expected a whole number"),
        ({"steps": "60"}, "steps='60': expected a whole number; write 60"),
        ({"group_size": "2e-1"}, "group_size='2e-1': .* write 0.2"),
        ({"group_size": 1.5}, "group_size"),
        ({"group_size": 0}, "group_size"),
        ({"lr_schedule": "cosin"}, "lr_schedule='cosin': expected one of constant, "),
        ({"bf16": "yes"}, "bf16='yes': expected True or False"),
        ({"learning_rate": False}, "learning_rate=False: expected a number"),
        ({"deepspeed": 2}, "deepspeed=2: expected text or None"),
        (None, "TrainSpec=None: expected keys and values, such as base: data/base"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_trained_are_named(values: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        TrainSpec.from_dict(values)


def test_the_trainer_knows_every_schedule_of_the_learning_rate() -> None:
    assert set(LR_SCHEDULES) <= {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_schedule_warms_up_or_refuses_to(name: str) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    first = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=9).get_last_lr()
    if first == [0.0]:
        assert TrainSpec(lr_schedule=name, warmup_steps=5).lr_schedule == name
        return
    with pytest.raises(ValueError, match=rf"warmup_steps=5: lr_schedule='{name}' has none"):
        TrainSpec(lr_schedule=name, warmup_steps=5)
    assert TrainSpec(lr_schedule=name, warmup_steps=0).warmup_steps == 0


@pytest.mark.parametrize("name", ["pytorch_model.bin", "chat_template.jinja", "config.json", "a.safetensors"])
def test_a_base_whose_files_change_is_another_base(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    for file in {name, "pytorch_model.bin"}:
        (tmp_path / file).write_text("one")
    before = base_hash(str(tmp_path))
    (tmp_path / name).write_text("two")
    assert base_hash(str(tmp_path)) != before


def test_weights_beside_safetensors_are_not_read_and_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("one")
    before = base_hash(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_text("two")
    assert base_hash(str(tmp_path)) == before


CORPUS = CorpusSpec()
RECIPE = recipe_of(TrainSpec())
SOURCE = ExampleSource("jsonl:x")
SPECS: list[Callable[..., Any]] = [
    TrainSpec,
    CorpusSpec,
    lambda **changes: InstructionSpec(**{"examples": SOURCE} | changes),
    lambda **changes: ExampleSource(**{"source": "jsonl:x"} | changes),
    StepSpec,
    BaseRecipe,
    lambda **changes: CacheStudy(**{"base": "b", "corpus": CORPUS} | changes),
    lambda **changes: EfficiencyStudy(**{"step": StepSpec(), "contexts": (64,), "limit_gib": 1.0} | changes),
    lambda **changes: RetrievalStudy(
        **{"recipe": RECIPE, "patterns": ("sf",), "seeds": (0,), "lengths": (64,)} | changes
    ),
    lambda **changes: ExtensionStudy(
        **{
            "recipe": RECIPE,
            "patterns": ("full", "sf"),
            "seeds": (0,),
            "test_sets": ("Table 1",),
            "contexts": (64,),
        }
        | changes
    ),
    lambda **changes: TextSet(**{"corpus": CORPUS, "pieces": 1, "tokens": 64} | changes),
    lambda **changes: dataclasses.replace(RECIPE, **changes),
]


@pytest.mark.parametrize("make", SPECS, ids=lambda make: type(make()).__name__)
def test_every_field_of_every_spec_refuses_what_it_is_not(make: Callable[..., Any]) -> None:
    spec = make()
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        wrong: list[Any] = [object(), b"60", ["60"], {"a": object()}]
        if not isinstance(value, bool):
            wrong += [True, False]
        if not isinstance(value, str) and field.type not in (str | None, "str | None"):
            wrong += ["60", "sf"]
        if isinstance(value, int) and not isinstance(value, bool):
            wrong += [float(value), float("nan")]
        if isinstance(value, float):
            wrong += [float("inf"), float("nan")]
        for other in wrong:
            with pytest.raises((TypeError, ValueError), match=rf"^{field.name}\W"):
                make(**{field.name: other})


def test_a_spec_is_read_without_models_or_adapters() -> None:
    heavy = "{'transformers', 'peft', 'datasets'}"
    code = f"import sys, sinklora.train.instruction_spec; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
