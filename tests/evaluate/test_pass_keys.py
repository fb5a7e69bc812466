"""Pass-key accuracy with models whose answers are known."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.evaluate.pass_keys import pass_key_accuracy
from sinklora.evaluate.statistics import Accuracy


class Parrot:
    """Answers with a number that the prompt holds (`knows`) or with zeros."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: object, knows: bool) -> None:
        self.tokenizer, self.knows = tokenizer, knows

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        words = self.tokenizer.decode(input_ids[0]).split()  # type: ignore[attr-defined]
        key = next(word.strip(".") for word in words if word.strip(".").isdigit())
        ids = self.tokenizer(f" {key if self.knows else 'x'}. And", add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        return torch.cat([input_ids, torch.tensor([ids])], 1)


@pytest.mark.parametrize("knows", [True, False])
def test_answers_are_compared_exactly(knows: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    found = pass_key_accuracy(
        Parrot(tokenizer, knows), tokenizer, tokens=200, trials=4, seed=0, wording=0, progress=False
    )
    assert found == Accuracy(4 if knows else 0, 4)


def test_the_embedded_base_model_retrieves() -> None:
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    model = AutoModelForCausalLM.from_pretrained("data/base", dtype=torch.float32).eval()
    assert pass_key_accuracy(model, tokenizer, tokens=512, trials=12, seed=7, progress=False).correct >= 11


def test_trials_are_checked() -> None:
    with pytest.raises(ValueError, match="trials=0"):
        pass_key_accuracy(SimpleNamespace(), SimpleNamespace(), tokens=1, trials=0, seed=0)  # type: ignore[arg-type]
