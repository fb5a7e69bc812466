"""The embedded base model: its promises, its card, and the recipe at toy size."""

import json
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.reproduction.base_model.model_card import publish
from sinklora.reproduction.base_model.study import BaseRecipe, make_base

BASE = Path("data/base")
MEASURED = pd.DataFrame([{"measure": "perplexity", "value": 9.5, "low": None, "high": None, "n": 3}])


def test_the_committed_model_is_what_its_card_says() -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert 4e6 <= model.num_parameters() <= 6e6
    assert model.config.max_position_embeddings == 512
    assert (BASE / "model.safetensors").stat().st_size <= 12_000_000
    record = json.loads((BASE / "record.json").read_text())
    assert record["provenance"]["data"]["sha256"] in (BASE / "README.md").read_text()
    assert len(pd.read_csv(BASE / "loss.csv")) == record["spec"]["steps"]


def test_a_number_is_read_digit_by_digit() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids = tokenizer("x = 40213")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert [tokenizer.decode([i]) for i in ids[-5:]] == list("40213")


def test_the_recipe_at_toy_size_and_its_publication(tmp_path: Path) -> None:
    recipe = BaseRecipe(
        vocabulary=400,
        tokenizer_characters=50_000,
        training_characters=200_000,
        context=256,
        steps=2,
        batch_size=2,
        compile=False,
    )
    made = make_base(recipe, runs=tmp_path / "runs", cache=tmp_path / "cache", progress=False)
    written = (made / "model.safetensors").stat().st_mtime_ns
    assert make_base(recipe, runs=tmp_path / "runs", cache=tmp_path / "cache", progress=False) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == written
    for _ in range(2):  # the second time over the first
        publish(made, MEASURED, tmp_path / "published")
    assert "9.500" in (tmp_path / "published" / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "published")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "published")
    assert model(**tokenizer("x = 1", return_tensors="pt")).logits.shape[-1] == len(tokenizer)


def test_large_weights_are_not_published(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 12_000_001)
    with pytest.raises(ValueError, match="12,000,001 bytes"):
        publish(tmp_path, MEASURED, tmp_path / "published")
    assert not (tmp_path / "published").exists()
