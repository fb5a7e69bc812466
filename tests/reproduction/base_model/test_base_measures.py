"""What is measured of the base model and said of it on its card."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.evaluate.pass_keys import pass_key_accuracy
from sinklora.evaluate.perplexity import measure_perplexity
from sinklora.reproduction.base_model.model_card import card_text, described
from sinklora.reproduction.base_model.study import measure_base
from sinklora.train.sources import CorpusSpec, read_documents

BASE = Path("data/base")


def test_both_test_sets_and_every_length_are_measured() -> None:
    asked = {"context": 512, "documents": 1, "document_tokens": 200, "trials": 2, "seed": 0}
    measured = measure_base(BASE, **asked, progress=False)  # type: ignore[arg-type]
    assert measured.measure.tolist() == [
        "perplexity at 512, unseen files of the training packages",
        "perplexity at 512, unseen packages",
        "pass-key recall at 128 tokens",
        "pass-key recall at 256 tokens",
        "pass-key recall at 512 tokens",
    ]
    assert measured.n.tolist() == [199, 199, 2, 2, 2]
    assert set(measured.attrs["data"]) == {"validation", "test"}
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for row, split in enumerate(("validation", "test")):
        [first, *_] = read_documents(CorpusSpec(split=split, total_characters=400_000))[0]
        ids = [tokenizer.bos_token_id, *tokenizer(first.text, add_special_tokens=False)["input_ids"]][:200]
        read = measure_perplexity(model, [np.array(ids)], context=512, stride=256, progress=False)
        assert measured.value[row] == pytest.approx(read.perplexity, rel=1e-4), split
    right = pass_key_accuracy(model, tokenizer, tokens=128, trials=2, seed=0, progress=False)
    assert measured.loc[2, ["value", "low", "high"]].tolist() == [right.share, *right.interval()]


def test_the_card_counts_what_was_seen() -> None:
    measured = pd.DataFrame([{"measure": "perplexity", "value": 9.5, "low": None, "high": None, "n": 3}])
    record = described(BASE)
    spec = record["spec"]
    assert (spec["steps"], spec["batch_size"], spec["context"]) == (3400, 16, 512)
    text = card_text(record, measured)
    assert "3,400 steps of 16 rows of 512 tokens: 27,852,800 tokens seen, seed 0" in text
    losses = pd.read_csv(BASE / "loss.csv").loss
    assert f"| training loss | {losses[-50:].mean():.3f} nats a token" in text
    parameters = AutoModelForCausalLM.from_pretrained(BASE).num_parameters()
    assert f"| parameters | {parameters:,} |" in text
    assert "hidden size 256, 4 heads of 64, context 512 tokens" in text
    assert pytest.approx(2 * parameters, rel=0.01) == record["bytes"], "two bytes a weight"
    assert " minutes; " in text
    unknown = {**record, "provenance": {**record["provenance"], "seconds": None}}
    assert " minutes; " not in card_text(unknown, measured), "of a run whose checkpoint said nothing"
