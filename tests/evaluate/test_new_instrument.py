"""A new instrument is a file, as `docs/extending.md` shows one: it measures what plain counting measures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from files_in_texts import module_in_text
from sinklora.hf.models import use_pattern
from sinklora.lora.adapter import lora_plus
from tiny_models import tiny_model

DOCUMENTS = [[3, 9, 27, 20, 60, 58, 52], [5, 5], list(range(3, 33))]


@pytest.fixture
def instrument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return module_in_text("sinklora/evaluate/top_guesses.py", tmp_path, monkeypatch)


def fluent_model() -> PreTrainedModel:
    """A model that guesses some of DOCUMENTS, and not all: its output layer tells runs of numbers."""
    model = tiny_model("llama-gqa").train()
    ids = torch.tensor([DOCUMENTS[2]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(12):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def hits_by_hand(model: PreTrainedModel) -> int:
    """One token after another, each from its own prefix."""
    model.eval()
    return sum(
        int(model(torch.tensor([document[:end]])).logits[0, -1].argmax()) == document[end]
        for document in DOCUMENTS
        for end in range(1, len(document))
    )


def test_it_counts_what_prefixes_guess_and_leaves_the_model_as_it_was(instrument: Any) -> None:
    model = fluent_model()
    result = instrument.measure_guesses(model, DOCUMENTS)
    assert model.training
    assert (result.tokens, result.documents) == (36, 3)
    assert 0 < result.hits < 36 and result.hits == hits_by_hand(model)
    assert result.share == result.hits / 36


def test_documents_are_taken_as_a_corpus_holds_them(instrument: Any) -> None:
    model = fluent_model()
    halves = [np.array(document, dtype=np.uint16) for document in DOCUMENTS]
    assert instrument.measure_guesses(model, halves) == instrument.measure_guesses(model, DOCUMENTS)


def test_a_training_pattern_and_an_adapter_change_nothing(instrument: Any) -> None:
    model = fluent_model()
    before = instrument.measure_guesses(model, DOCUMENTS)
    model = use_pattern(model, "sf(group_size=4)").train()
    assert instrument.measure_guesses(model, DOCUMENTS) == before
    assert instrument.measure_guesses(lora_plus(model, rank=2).train(), DOCUMENTS) == before


@pytest.mark.parametrize(
    ("documents", "said"), [([], r"documents=\[\]"), ([[3, 4], [3]], r"documents\[1\] has 1 tokens")]
)
def test_it_refuses_what_has_nothing_to_guess(instrument: Any, documents: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        instrument.measure_guesses(tiny_model("llama-gqa"), documents)
