"""Pass-key documents and accuracy, with models whose answers are known and with the trained base model."""

import random
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from penalties import penalised
from sinklora.evaluate.pass_keys import is_right, pass_key_accuracy, pass_key_documents, written_answers
from sinklora.evaluate.statistics import Accuracy
from sinklora.evaluate.through_cache import pass_keys
from sinklora.train.retrieval_documents import NeedleDocument
from tiny_models import tiny_config

BASE = "data/base"


class Parrot(LlamaForCausalLM):
    """Answers each row with the number that its prompt holds, changed by `said`; remembers the prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, said: str = " {}. And") -> None:
        super().__init__(tiny_config("llama-mha"))
        self.eval()
        self.tokenizer, self.said, self.prompts, self.batches = tokenizer, said, [], []

    def generate(
        self, ids: torch.Tensor, attention_mask: torch.Tensor, max_new_tokens: int, **_: object
    ) -> torch.Tensor:
        rows = []
        for row, mask in zip(ids, attention_mask, strict=True):
            prompt = self.tokenizer.decode(row[mask.bool()], skip_special_tokens=True)
            key = next(word for word in prompt.replace(".", " ").split() if word.isdigit())
            answer = self.tokenizer(self.said.format(key), add_special_tokens=False)["input_ids"]
            rows.append([*answer, *[self.tokenizer.pad_token_id] * max_new_tokens][:max_new_tokens])
            self.prompts.append(prompt)
        self.batches.append(len(rows))
        return torch.cat([ids, torch.tensor(rows)], 1)


# --- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 01234. ", True),
        ("01234", True),
        ("\n 01234 is", True),
        (" 012345", False),  # a longer number that begins with the key
        (" 1234", False),
        (" 0123", False),
        (" the 01234", False),
        ("", False),
    ],
)
def test_the_number_that_an_answer_begins_with_counts_with_all_its_digits(answer: str, right: bool) -> None:
    assert is_right(answer, NeedleDocument("What?", "01234")) is right


@pytest.mark.parametrize(
    ("said", "correct"), [(" {}. And", 4), (" {}0", 0), (" x{}", 0), ("{}", 4), (" {}", 4), (" 9{}", 0)]
)
def test_answers_are_compared_exactly(tokenizer: PreTrainedTokenizerBase, said: str, correct: int) -> None:
    accuracy = pass_key_accuracy(
        Parrot(tokenizer, said),  # type: ignore[arg-type]
        tokenizer,
        tokens=200,
        trials=4,
        seed=0,
        progress=False,
    )
    assert accuracy == Accuracy(correct, 4)


# --- draws: what was measured before must be measured again -------------------------------------------------


def test_the_documents_of_the_accuracy_come_from_its_own_draw(tokenizer: PreTrainedTokenizerBase) -> None:
    parrot = Parrot(tokenizer)
    pass_key_accuracy(parrot, tokenizer, tokens=128, trials=5, seed=3, batch_size=2, progress=False)  # type: ignore[arg-type]
    assert parrot.batches == [2, 2, 1]
    expected = pass_key_documents(random.Random("pass key/3/128"), tokenizer, tokens=128, trials=5)
    assert parrot.prompts == [document.prompt for document in expected]
    assert answers(expected) == ACCURACY_KEYS


def test_the_documents_of_the_caches_come_from_theirs(tokenizer: PreTrainedTokenizerBase) -> None:
    documents = pass_keys(tokenizer, tokens=128, trials=5, seed=3)
    assert answers(documents) == CACHE_KEYS
    assert {document.question for document in documents} == {"What is the pass key? The pass key is"}


def answers(documents: Sequence[NeedleDocument]) -> list[str]:
    return [document.answer for document in documents]


ACCURACY_KEYS = ["71588", "64301", "34928", "81321", "20697"]
CACHE_KEYS = ["73720", "51334", "11238", "06782", "40115"]


# --- a real model -------------------------------------------------------------------------------------------


def test_the_embedded_base_model_retrieves(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert pass_key_accuracy(model, tokenizer, tokens=512, trials=12, seed=7, progress=False).correct >= 11


def test_a_batch_of_several_wordings_writes_what_each_alone_does(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(0)
    lengths = (64, 96, 480)  # far apart, so that what a short row is padded with would be seen
    drawn = [d for n in lengths for d in pass_key_documents(rng, tokenizer, tokens=n, trials=2)]
    assert len({document.question for document in drawn}) > 1
    whole = [NeedleDocument(document.prompt, document.answer) for document in drawn]
    together = written_answers(model, tokenizer, whole, progress=False)
    assert together == written_answers(model, tokenizer, whole, batch_size=1, progress=False)
    alone = []
    for document in whole:
        prompt = tokenizer(document.prompt, return_tensors="pt")
        ids = model.generate(**prompt, max_new_tokens=7, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        alone.append(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    assert together == alone


def test_bad_input_is_named(tokenizer: PreTrainedTokenizerBase) -> None:
    parrot = Parrot(tokenizer)
    for name in ("trials", "batch_size"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            pass_key_accuracy(parrot, tokenizer, **{"tokens": 99, "trials": 1, "seed": 0, name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tokens=5: too short"):
        pass_key_accuracy(parrot, tokenizer, tokens=5, trials=1, seed=0)  # type: ignore[arg-type]
    parrot.training = True
    with pytest.raises(ValueError, match="training mode"):
        pass_key_accuracy(parrot, tokenizer, tokens=99, trials=1, seed=0)  # type: ignore[arg-type]


def test_answers_are_greedy_whatever_the_model_asks_for(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    keys = pass_keys(tokenizer, tokens=256, trials=4, seed=0)
    plain = written_answers(model, tokenizer, keys, progress=False)
    with penalised(model):
        assert written_answers(model, tokenizer, keys, progress=False) == plain
