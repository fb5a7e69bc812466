"""Rows of examples: answers alone are labels, and packed is as if each example stood alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from chat_models import TEMPLATE
from helpers import assert_close
from sinklora.hf.models import use_pattern
from sinklora.records.files import json_hash
from sinklora.train.conversations import ConversationTemplate, Piece
from sinklora.train.examples import Example, ExampleSource
from sinklora.train.instruction_rows import (
    LEAST_PROMPT,
    ExampleRows,
    TokenizedExamples,
    ragged_batch,
    template_record,
    tokenize_examples,
    without_middle,
)
from sinklora.train.instruction_spec import InstructionSpec, instruction_identity
from sinklora.train.loss import ChunkedLoss
from tiny_models import VOCABULARY, tiny_model

PATTERNS = [None, "full", "sf", "s2", "short", "sf(group_size=5)", "s2(group_size=6)"]
LENGTHS, ROWS = (9, 14, 3, 17, 6), [[3, 4], [1, 0], [2]]  # 23, 23 and 3 tokens: a ragged end


def examples_of(lengths: tuple[int, ...] = LENGTHS) -> TokenizedExamples:
    """Examples of random tokens; of each the last third is an answer."""
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *lengths[:-1]])
    labels = np.concatenate([np.arange(n) >= max(1, 2 * n // 3) for n in lengths])
    return TokenizedExamples(rng.integers(3, VOCABULARY, sum(lengths)), labels, starts, 0, 0)


def tiny(pattern: str | None) -> PreTrainedModel:
    model = tiny_model("llama-gqa")
    if pattern is not None:
        use_pattern(model, pattern)
    return model.train()


def alone(model: PreTrainedModel, examples: TokenizedExamples) -> Tensor:
    """The mean loss over answer tokens, each example read by itself, from all logits."""
    total, counted = torch.zeros(()), 0
    for start, length in zip(examples.starts, examples.lengths, strict=True):
        ids = torch.from_numpy(examples.tokens[start : start + length])
        answers = torch.from_numpy(examples.labels[start : start + length])[1:]
        likely = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        total = total - likely.gather(1, ids[1:, None])[:, 0][answers].sum()
        counted += int(answers.sum())
    return total / counted


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_packed_examples_train_as_examples_alone(pattern: str | None) -> None:
    model, examples = tiny(pattern), examples_of()
    expected = alone(model, examples)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    rows = ExampleRows(examples, ROWS)
    batches = [ragged_batch([rows[0], rows[2]]), ragged_batch([rows[1]])]  # a step of two unequal batches
    counted = sum((batch["labels"] != -100).sum() for batch in batches)
    loss = sum(ChunkedLoss(7)(model, **batch, counted=counted) for batch in batches)
    assert_close(loss, expected, atol=1e-5)
    loss.backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, wanted[name], atol=2e-5 * max(1.0, wanted[name].abs().max().item()))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_no_token_sees_a_later_one_or_another_example(pattern: str | None) -> None:
    model = tiny(pattern)
    rows = ExampleRows(examples_of(), ROWS)
    batch = ragged_batch([rows[0], rows[2]])
    document = (batch["position_ids"] == 0).cumsum(-1)
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, position_ids=batch["position_ids"], use_cache=False).logits
    for row, place in ((0, 8), (0, 17), (0, 22), (1, 2), (1, 12)):
        [gradient] = torch.autograd.grad(logits[row, place].square().sum(), embedded, retain_graph=True)
        seen = gradient.abs().sum(-1) > 0
        allowed = (document[row] == document[row, place]) & (torch.arange(23) <= place)
        assert not seen[1 - row].any() and not (seen[row] & ~allowed).any()
        assert seen[row, place]


def test_a_row_is_its_examples_side_by_side() -> None:
    examples = examples_of((4, 3))
    batch = ragged_batch([ExampleRows(examples, [[1, 0]])[0], ExampleRows(examples, [[1]])[0]])
    ids = examples.tokens.tolist()
    assert batch["input_ids"].tolist() == [[*ids[4:], *ids[:4]], [*ids[4:], 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 0, 1, 2, 3]]
    assert batch["labels"].tolist() == [
        [-100, -100, ids[6], -100, -100, ids[2], ids[3]],
        [-100, -100, ids[6], -100, -100, -100, -100],
    ]


@pytest.fixture(scope="module")
def template() -> ConversationTemplate:
    tokenizer: Any = AutoTokenizer.from_pretrained("data/base")
    return ConversationTemplate(tokenizer, "llama-2")


def example(question: str, answer: str, place: str = "here") -> Example:
    return Example(place, (("user", question), ("assistant", answer)))


def tokenized(
    template: ConversationTemplate, examples: list[Example], folder: Path, **options: Any
) -> TokenizedExamples:
    options = {"context": 64, "long_examples": "error"} | options
    return tokenize_examples(examples, template, cache=folder, progress=False, **options)


def test_answers_and_their_ends_are_the_labels(template: ConversationTemplate, tmp_path: Path) -> None:
    turns = (("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Four."))
    for _ in range(2):  # made, then read
        found = tokenized(template, [Example("x", turns), example("Five?", "Six.")], tmp_path)
        assert template.tokenizer.decode(found.tokens[found.labels]) == " Two. </s> Four. </s> Six. </s>"
        assert found.lengths == np.diff([*found.starts, len(found.tokens)]).tolist()
        assert (found.truncated, found.dropped) == (0, 0)
    kept = len(list(tmp_path.iterdir()))
    tokenized(template, [example("Five?", "Six!")], tmp_path)
    assert len(list(tmp_path.iterdir())) == kept + 1


@pytest.mark.parametrize("says_system", [True, False])
def test_what_a_template_writes_around_a_system_message_counts_where_there_is_one(
    tmp_path: Path, says_system: bool
) -> None:
    """Two templates that differ there alone: other tokens and another run, or the same of both."""
    turns = [("user", "Why?"), ("assistant", "So.")]
    given = [Example("x", (("system", "Be brief."), *turns) if says_system else tuple(turns))]
    spec = InstructionSpec(base="gpt2", examples=ExampleSource("jsonl:x"))
    texts, keys = set(), set()
    for begin in ("", "{% if messages[0]['role'] == 'system' %}RULES: {% endif %}"):
        tokenizer: Any = AutoTokenizer.from_pretrained("data/base")
        tokenizer.chat_template = begin + TEMPLATE
        own = ConversationTemplate(tokenizer)
        texts.add(tokenizer.decode(tokenized(own, given, tmp_path).tokens))
        keys.add(json_hash(instruction_identity(spec, template_record(given, own), "0")))
    assert len(texts) == len(keys) == 1 + says_system


def test_a_template_without_system_messages_is_refused_with_the_place(tmp_path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained("data/base")
    check = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    tokenizer.chat_template = check + TEMPLATE
    given = Example("line 4", (("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")))
    with pytest.raises(ValueError, match=r"^line 4: .* does not take messages of system, user, assistant"):
        tokenized(ConversationTemplate(tokenizer), [given], tmp_path)


def test_long_examples_are_what_the_spec_says(template: ConversationTemplate, tmp_path: Path) -> None:
    short, long = example("One?", "Two."), example("begin " + "word " * 99 + "end", "An answer.", "line 7")
    endless = example("Tell me of it.", "and " * 99, "line 9")
    with pytest.raises(
        ValueError, match=r"1 of 2 examples are longer, the longest \(line 7\) has 1\d\d tokens"
    ):
        tokenized(template, [short, long], tmp_path)
    dropped = tokenized(template, [short, long, endless], tmp_path, long_examples="drop")
    assert (len(dropped.starts), dropped.truncated, dropped.dropped) == (1, 0, 2)
    cut = tokenized(template, [long, endless, short], tmp_path, long_examples="truncate-middle")
    assert (len(cut.starts), cut.truncated, cut.dropped) == (2, 1, 1)
    assert cut.lengths[0] == 64
    text = template.tokenizer.decode(cut.tokens[:64])
    assert text.startswith("<s>[INST] begin word") and text.endswith("word end [/INST] An answer. </s>")
    with pytest.raises(ValueError, match="no example is left, all 1 are longer"):
        tokenized(template, [endless], tmp_path, long_examples="drop")
    with pytest.raises(ValueError, match=r"^line 9: messages\[1\] \(assistant\) is empty"):
        tokenized(template, [short, example("What?", " ", "line 9")], tmp_path)


def test_the_longest_prompt_loses_its_middle_first() -> None:
    long, other = list(range(100)), list(range(200, 240))
    pieces = [Piece("prompt", other), Piece("answer", [1] * 9), Piece("prompt", long), Piece("end", [2])]
    cut = without_middle(pieces, 100)
    assert cut is not None and sum(len(piece.ids) for piece in cut) == 100
    assert cut[2].ids == [*range(25), *range(75, 100)] and cut[0].ids == other
    tight = without_middle(pieces, 2 * LEAST_PROMPT + 10)
    assert tight is not None and [len(piece.ids) for piece in tight] == [LEAST_PROMPT, 9, LEAST_PROMPT, 1]
    assert without_middle(pieces, 2 * LEAST_PROMPT + 9) is None
