"""SmolLM2-135M-Instruct by its name: it answers, trains, is scored, and generates through a cache."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicCache

import sinklora
from helpers import assert_close
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.evaluate.openbookqa import answers, openbookqa_task
from sinklora.evaluate.perplexity import measure_perplexity
from sinklora.pretrained.catalogue import SMOLLM2_135M
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import LoadedModel, fast_dtype
from sinklora.train.run import load_trained, train
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec

TEXT = (
    "The sun rises in the east and sets in the west. In the morning the birds begin to sing, and people go "
    "to work. Rivers flow from the mountains to the sea, and the water of the sea is salty. In winter it is "
    "cold and the days are short; in summer it is warm and the days are long.\n"
)
QUESTIONS = [
    {
        "id": "0",
        "question_stem": "Paris is the capital of",
        "choices": {"text": ["Japan", "Brazil", "France", "Canada"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    },
    {
        "id": "1",
        "question_stem": "In winter lakes freeze, since the weather is",
        "choices": {"text": ["cold", "musical", "green", "hungry"], "label": ["A", "B", "C", "D"]},
        "answerKey": "A",
    },
]


@pytest.fixture(scope="module")
def loaded(smollm2: str) -> LoadedModel:
    return sinklora.load(smollm2, dtype=torch.float32, device="cpu")


def test_it_answers(smollm2: str) -> None:
    model, tokenizer = sinklora.load(smollm2)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**asked.to(model.device), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0, asked["input_ids"].shape[1] :])
    assert model.config.max_position_embeddings == 8192


def test_its_perplexity_is_that_of_its_own_probabilities(loaded: LoadedModel) -> None:
    ids = np.asarray([loaded.tokenizer.bos_token_id, *loaded.tokenizer(TEXT)["input_ids"]])
    measured = measure_perplexity(loaded.model, [ids], context=128, stride=64, progress=False)
    with torch.inference_mode():
        logits = loaded.model(torch.from_numpy(ids)[None]).logits[0]
    likely = logits.log_softmax(-1)[:-1].gather(-1, torch.from_numpy(ids)[1:, None])
    assert_close(measured.perplexity, math.exp(-likely.mean()), atol=0, rtol=1e-4)
    assert 2 < measured.perplexity < 20  # a model that knows no English is at 49,152


def test_a_budget_that_holds_everything_changes_nothing(loaded: LoadedModel) -> None:
    model, tokenizer = loaded
    inputs = tokenizer(TEXT[:120], return_tensors="pt")
    prompt, new = inputs["input_ids"].shape[1], 4

    def written(cache: Any) -> Any:
        return model.generate(
            **inputs, past_key_values=cache, max_new_tokens=new, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip

    expected = written(DynamicCache())
    everything = written(sinklora.BudgetCache(model, sinklora.H2O(prompt + new)))
    assert torch.equal(everything.sequences, expected.sequences)
    assert_close(torch.stack(everything.logits), torch.stack(expected.logits), atol=2e-3)
    # A fraction is of the prompt: nothing of it is evicted before the first new token.
    whole = written(sinklora.BudgetCache(model, sinklora.H2O(1.0)))
    assert_close(whole.logits[0], expected.logits[0], atol=2e-3)
    few = written(sinklora.BudgetCache(model, sinklora.H2O(0.1)))
    assert (few.logits[1] - expected.logits[1]).abs().max() > 0.1


@pytest.mark.slow
def test_two_steps_of_training_start_from_it_and_say_so(
    smollm2: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    (tmp_path / "corpus" / "train" / "seasons.txt").write_text(TEXT * 3)
    spec = TrainSpec(
        base=smollm2,
        corpus=CorpusSpec(f"dir:{tmp_path / 'corpus'}"),
        context=32,
        pattern="sf",
        steps=2,
        batch_size=1,
        micro_batch_size=1,
        learning_rate=1e-3,
        warmup_steps=0,
    )
    run = train(spec, runs=tmp_path / "runs", cache=tmp_path / "tokens", progress=False)
    record = json.loads((run.path / "provenance.json").read_text())["packaged_model"]
    assert (record["requirement"], record["sha256"]) == (SMOLLM2_135M.requirement, SMOLLM2_135M.sha256)
    key = json.loads((run.path / "spec.json").read_text())
    assert (key["base"], key["base_sha256"]) == ("smollm2-135m", SMOLLM2_135M.sha256)
    first, _ = [float(row.split(",")[0]) for row in (run.path / "loss.csv").read_text().splitlines()[1:]]
    assert first < 6  # untrained weights: 10.8, the logarithm of the vocabulary
    card = (run.path / "adapter" / "README.md").read_text()
    assert 'sinklora.load("smollm2-135m").model' in card and model_path(smollm2) not in card
    ids = torch.arange(100, 116)[None]
    with torch.inference_mode():
        moved = load_trained(run, spec)(ids).logits - loaded.model(ids).logits
    assert 0 < moved.abs().max() < 20


def test_the_harness_asks_it_by_name(smollm2: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    model = LMEvalModel(smollm2, kv="h2o", budget="50%", device="cpu", batch_size=4)
    assert answers(model, openbookqa_task(file)) == {"0": True, "1": True}
    assert model.model.dtype == fast_dtype()
    recorded = model.get_model_info()["packaged_model"]
    assert (recorded["requirement"], recorded["sha256"]) == (SMOLLM2_135M.requirement, SMOLLM2_135M.sha256)
