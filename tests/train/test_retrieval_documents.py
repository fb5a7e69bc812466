"""Recall documents and the rows made of them."""

import random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from sinklora.reproduction.base_model.study import train_tokenizer
from sinklora.train.retrieval_documents import FILLER, fitted_pass_key, key_value_document, pass_key_document
from sinklora.train.rows import MixedRows, NeedleRows, rare_rows


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([*FILLER, "What is the pass key? " * 5], 300)


@given(st.integers(40, 400), st.floats(0, 1), st.integers(0, 50))
def test_the_fitted_document_is_the_longest_that_fits(tokens: int, depth: float, seed: int) -> None:
    document = fitted_pass_key(random.Random(seed), words, tokens, depth)
    assert words(document.text) <= tokens
    assert document.prompt.count(document.answer) == 2
    filler = max(words(text) for text in FILLER)
    assert words(document.text) + filler >= tokens


def test_depth_moves_the_key_and_nothing_else() -> None:
    first, last = (fitted_pass_key(random.Random(1), words, 300, depth) for depth in (0.0, 1.0))
    assert first.answer == last.answer
    assert words(first.text) == words(last.text)
    assert first.prompt.index(first.answer) < 60 < last.prompt.index(last.answer)


def test_the_papers_wording() -> None:
    document = pass_key_document(random.Random(3), 2, 1, wording=0)
    assert document.prompt.startswith(FILLER[0] * 2 + "The pass key is ")
    assert document.prompt.endswith("What is the pass key? The pass key is")
    assert len(document.answer) == 5 and document.answer.isdigit()


def test_every_value_is_stated_and_asked_for() -> None:
    for seed in range(20):
        text = key_value_document(random.Random(seed), 4)
        numbers = [word.strip(".()#") for word in text.split() if word.strip(".()#").isdigit()]
        assert sorted(numbers[:4]) == sorted(numbers[-4:])


@pytest.mark.parametrize(("tokens", "depth"), [(5, 0.5), (100, 1.5), (100, -0.1)])
def test_impossible_documents_are_named(tokens: int, depth: float) -> None:
    with pytest.raises(ValueError, match=r"tokens=5|depth="):
        fitted_pass_key(random.Random(0), words, tokens, depth)


def test_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("key 40213.", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([i]) for i in ids][-6:] == ["4", "0", "2", "1", "3", "."]


def test_recall_rows_are_full_and_reproducible(tokenizer: PreTrainedTokenizerFast) -> None:
    rows, again = NeedleRows(tokenizer, 256, 6, seed=1), NeedleRows(tokenizer, 256, 6, seed=1)
    for index in range(6):
        assert rows[index]["input_ids"].shape == (256,)
        assert rows[index]["input_ids"][0] == tokenizer.bos_token_id
        assert torch.equal(rows[index]["input_ids"], again[index]["input_ids"])
    other = NeedleRows(tokenizer, 256, 6, seed=2)
    assert not torch.equal(rows[0]["input_ids"], other[0]["input_ids"])


def test_recall_rows_of_separate_documents_begin_anew_at_each(tokenizer: PreTrainedTokenizerFast) -> None:
    joined, separate = (NeedleRows(tokenizer, 256, 6, 1, separate_documents=apart) for apart in (False, True))
    documents = 0
    for index in range(6):
        row, plain = separate[index], joined[index]
        begins = row["input_ids"] == tokenizer.bos_token_id
        documents += int(begins.sum())
        assert torch.equal(row["position_ids"] == 0, begins)
        assert set(row["position_ids"].diff()[~begins[1:]].tolist()) == {1}
        assert torch.equal(row["labels"], plain["labels"].masked_fill(begins, -100))
        assert set(plain) == {"input_ids", "labels"} and torch.equal(row["input_ids"], plain["input_ids"])
    assert documents > 6


class Numbers(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, count: int, sign: int) -> None:
        self.count, self.sign = count, sign

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= self.count:
            raise IndexError(index)
        return {"input_ids": torch.tensor(self.sign * (index + 1))}


@given(st.integers(1, 200), st.sampled_from([0.05, 0.1, 0.25, 0.29, 0.35, 0.5, 0.6, 0.9]))
@example(71, 0.29)
@example(117, 0.35)
def test_mixed_rows_take_each_row_once_in_the_right_share(count: int, share: float) -> None:
    mixed = MixedRows(Numbers(count, 1), Numbers(rare_rows(count, share), -1), share)
    values = [int(mixed[i]["input_ids"]) for i in range(len(mixed))]
    common, rare = [v for v in values if v > 0], [-v for v in values if v < 0]
    assert common == list(range(1, len(common) + 1))
    assert rare == list(range(1, len(rare) + 1))
    assert len(rare) == rare_rows(count, share) and count - 1 <= len(common) <= count
    assert abs(len(rare) - share * len(mixed)) <= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_outside_is_named(share: float) -> None:
    with pytest.raises(ValueError, match="share="):
        MixedRows(Numbers(3, 1), Numbers(3, -1), share)


def test_too_few_rare_rows_are_named() -> None:
    with pytest.raises(ValueError, match=r"share=0.6: 15 rare rows go with 10 others, there are 10"):
        MixedRows(Numbers(10, 1), Numbers(10, -1), 0.6)


@pytest.mark.parametrize(("share", "indices"), [(0.05, [19, 39]), (0.25, [3, 7, 11]), (0.29, [3, 6, 10, 13])])
def test_rare_rows_stand_where_they_always_stood(share: float, indices: list[int]) -> None:
    """Finished runs are known by their share, not by their rows."""
    mixed = MixedRows(Numbers(40, 1), Numbers(40, -1), share)
    rare = [i for i in range(indices[-1] + 1) if int(mixed[i]["input_ids"]) < 0]
    assert rare == indices
