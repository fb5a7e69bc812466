"""A model saved with its pattern comes back with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pattern_models import pattern_logits
from sinklora.attention.patterns import FULL, SF, SF_SHIFTED
from sinklora.hf.attention import ATTENTION_NAME
from sinklora.hf.models import current_pattern, evaluates_with_pattern, use_pattern
from tiny_models import make_batch, tiny_model


def test_reloaded_model_trains_with_its_pattern(tmp_path) -> None:
    batch = make_batch("packed")
    model = use_pattern(tiny_model("qwen3-gqa"), SF_SHIFTED)
    expected = pattern_logits(model.train(), batch)
    model.save_pretrained(tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert current_pattern(loaded) == SF_SHIFTED
    assert torch.equal(pattern_logits(loaded.train(), batch), expected)

    loaded.save_pretrained(tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert current_pattern(again) == SF_SHIFTED
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "second", attn_implementation="sdpa")
    assert current_pattern(plain) is None


def test_a_model_saved_again_before_its_first_call_is_given_its_pattern(tmp_path: Path) -> None:
    use_pattern(tiny_model("llama-gqa"), SF).save_pretrained(tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    use_pattern(loaded, current_pattern(loaded)).save_pretrained(tmp_path / "second")
    assert current_pattern(AutoModelForCausalLM.from_pretrained(tmp_path / "second")) == SF


LOAD_BEFORE_AND_AFTER_THE_IMPORT = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
import sinklora.hf
print(AutoModelForCausalLM.from_pretrained(sys.argv[1]).config._attn_implementation)
"""


@pytest.mark.slow
def test_a_saved_model_asks_for_the_import(tmp_path: Path) -> None:
    use_pattern(tiny_model("llama-gqa"), SF).save_pretrained(tmp_path)
    command = [sys.executable, "-c", LOAD_BEFORE_AND_AFTER_THE_IMPORT, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The name is all that transformers lets us say to those who forgot the import.
    assert printed.startswith('Specified `attn_implementation="sinklora"` is not supported')
    assert printed.endswith("\nsinklora\n")


# What the first release wrote into a config.
SAVED = {
    "attn_implementation": "sinklora",
    "sinklora": {
        "pattern": {
            "kind": "windows",
            "group_size": 0.25,
            "sink_tokens": 4,
            "shifted": 0.0,
            "wrapped": False,
        },
        "evaluate_with_pattern": False,
        "replaced": "sdpa",
    },
}


def test_a_model_saved_by_the_first_release_loads(tmp_path: Path) -> None:
    batch, model = make_batch("packed"), tiny_model("llama-gqa")
    model.save_pretrained(tmp_path)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | SAVED))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert current_pattern(loaded) == SF
    use_pattern(model, SF)
    former = {"shifted_fraction": "shifted"}
    now = {former.get(name, name): value for name, value in model.config.sinklora["pattern"].items()}
    assert model.config.sinklora | {"pattern": now} == SAVED["sinklora"]
    assert torch.equal(pattern_logits(loaded.train(), batch), pattern_logits(model.train(), batch))


def test_config_holds_json_only(tmp_path) -> None:
    model = use_pattern(tiny_model("llama-gqa"), SF, evaluate_with_pattern=True)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["sinklora"] == model.config.sinklora
    assert stored["sinklora"]["pattern"] == SF.to_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert evaluates_with_pattern(loaded) and current_pattern(loaded) == SF


def test_models_saved_with_former_names_are_loaded(tmp_path) -> None:
    use_pattern(tiny_model("llama-gqa"), SF_SHIFTED).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    pattern = config["sinklora"]["pattern"]
    pattern["shifted"] = pattern.pop("shifted_fraction")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert current_pattern(AutoModelForCausalLM.from_pretrained(tmp_path)) == SF_SHIFTED


def test_name_without_a_pattern_is_an_error() -> None:
    model = tiny_model("llama-gqa")
    model.set_attn_implementation(ATTENTION_NAME)
    with pytest.raises(ValueError, match=r"call sinklora.use_pattern"):
        pattern_logits(model, make_batch("plain"))
    with pytest.raises(ValueError, match=r"call sinklora.use_pattern"):
        current_pattern(model)
    assert current_pattern(use_pattern(model, FULL)) == FULL
