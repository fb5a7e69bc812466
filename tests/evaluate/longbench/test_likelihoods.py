"""Nats of right answers after LongBench's prompts: those of plain passes, all of them behind the eviction."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora import H2O
from sinklora.evaluate.longbench.likelihoods import answer_nats
from sinklora.evaluate.longbench.predictions import prompt_ids
from sinklora.evaluate.longbench.records import Record
from sinklora.hf.budget_cache import BudgetCache

TEXT = "The gardener counted the trees twice and wrote the number down. " * 20
RECORDS = [
    Record("How many?", TEXT, ("forty trees", "forty of them, all in all"), 3, "qasper", "en", None, "a"),
    Record("Who counted?", TEXT, ("the gardener",), 3, "qasper", "en", None, "b"),
]


def plain(prompt: str) -> str:
    return f"<ask>{prompt}</ask>"


@torch.inference_mode()
def by_hand(model: PreTrainedModel, cache: Cache, prompt: list[int], answer: list[int]) -> float:
    """The prompt but for its last token at once, then one token after the other; mean loss of the answer."""
    model(torch.tensor([prompt[:-1]]), past_key_values=cache, use_cache=True)
    losses, token = [], prompt[-1]
    for target in answer:
        logits = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
        losses.append(float(-logits.float().log_softmax(-1)[target]))
        token = target
    return sum(losses) / len(losses)


@pytest.mark.parametrize("policy", [None, H2O(0.2)], ids=str)
@pytest.mark.parametrize("chat", [False, True])
def test_answers_are_read_through_what_is_kept(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: H2O | None, chat: bool
) -> None:
    make = DynamicCache if policy is None else partial(BudgetCache, model, policy)
    settings = {"prompt_format": plain} if chat else {}
    options = {**settings, "max_length": 200, "answer_tokens": 4, "progress": False}
    found = answer_nats(model, tokenizer, RECORDS, "qasper", make, **options)  # type: ignore[arg-type]
    for record, nats in zip(RECORDS, found, strict=True):
        prompt = prompt_ids(tokenizer, record, "qasper", 200, **settings)  # type: ignore[arg-type]
        space = "" if chat else " "
        tokens = [tokenizer(space + a, add_special_tokens=False)["input_ids"][:4] for a in record.answers]
        wanted = min(by_hand(model, make(), prompt, answer) for answer in tokens)
        assert nats == pytest.approx(wanted, abs=1e-4)


def test_bad_arguments_are_named(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="answer_tokens=0: expected at least 1"):
        answer_nats(model, tokenizer, RECORDS, "qasper", DynamicCache, max_length=200, answer_tokens=0)
    empty = [replace(RECORDS[0], answers=("forty", ""))]
    with pytest.raises(ValueError, match="records: an answer of 'a' is empty"):
        answer_nats(
            model,
            tokenizer,
            empty,
            "qasper",
            DynamicCache,
            max_length=200,
            answer_tokens=4,
            prompt_format=plain,
            progress=False,
        )
    with pytest.raises(ValueError, match="dataset='qmsum', but record 'a' is of 'qasper'"):
        answer_nats(model, tokenizer, RECORDS, "qmsum", DynamicCache, max_length=200, answer_tokens=4)
