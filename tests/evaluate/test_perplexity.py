"""Sliding-window perplexity against a computation that runs the model once for every single token."""

import copy
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from helpers import assert_close
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.patterns import SF
from sinklora.evaluate import scored_logits
from sinklora.evaluate.perplexity import PerplexityResult, measure_perplexity
from sinklora.evaluate.sliding_windows import batches, windows_of
from sinklora.hf.models import use_pattern
from sinklora.hf.rope import extend_context
from tiny_models import tiny_model

VOCABULARY = 29
Document = NDArray[np.int64]


def tiny_llama(dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """Random weights, large enough that a changed prefix changes the loss in the second digit."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to(dtype).eval()


LLAMA = tiny_llama()


def random_documents(*lengths: int, seed: int = 0) -> list[Document]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCABULARY, length) for length in lengths]


def prefix_start(token: int, length: int, context: int, stride: int) -> int:
    """Where the window that scores `token` begins, in closed form."""
    if token < context:
        return 0
    end = context + ((token - context) // stride + 1) * stride
    return min(end, length) - context


@torch.no_grad()
def brute_force(
    model: nn.Module, document: Sequence[int] | Document, context: int, stride: int
) -> list[float]:
    """Loss of each token but the first, from a run of the model over exactly the tokens that it may see."""
    losses = []
    for token in range(1, len(document)):
        start = prefix_start(token, len(document), context, stride)
        prefix = torch.as_tensor(np.asarray(document[start:token], dtype=np.int64))[None]
        log_probabilities = model(input_ids=prefix, use_cache=False).logits[0, -1].double().log_softmax(-1)
        losses.append(-float(log_probabilities[int(document[token])]))
    return losses


def assert_matches_brute_force(
    result: PerplexityResult,
    model: nn.Module,
    documents: Sequence[Document],
    context: int,
    stride: int,
    atol: float,
) -> None:
    expected = [brute_force(model, document, context, stride) for document in documents]
    assert [score.index for score in result.per_document] == [
        i for i, d in enumerate(documents) if len(d) > 1
    ]
    for score in result.per_document:
        losses = expected[score.index]
        assert score.tokens == len(losses)
        assert_close(torch.tensor(score.nll), torch.tensor(math.fsum(losses) / len(losses)), atol=atol)
    every = [loss for losses in expected for loss in losses]
    assert result.tokens == len(every)
    assert_close(torch.tensor(result.nll), torch.tensor(math.fsum(every) / len(every)), atol=atol)
    assert math.isclose(result.perplexity, math.exp(result.nll))


def run(documents: Sequence[Any], model: nn.Module = LLAMA, **arguments: Any) -> PerplexityResult:
    return measure_perplexity(model, documents, **{"context": 8, "stride": 3, "progress": False, **arguments})


# --- windows -----------------------------------------------------------------------------------------------


@given(length=st.integers(2, 80), context=st.integers(2, 30), data=st.data())
def test_every_token_but_the_first_is_scored_once_from_enough_context(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    windows = list(windows_of(7, length, context, stride))
    scored = [token for window in windows for token in range(window.first, window.stop)]
    assert scored == list(range(1, length))
    assert {window.length for window in windows} == {min(context, length)}
    assert {window.document for window in windows} == {7}
    assert windows[0].start == 0
    assert all(window.stop - window.first == stride for window in windows[1:-1])
    assert all(window.first - window.start >= context - stride for window in windows[1:])
    for window in windows:
        for token in range(window.first, window.stop):
            assert window.start == prefix_start(token, length, context, stride)


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=6), batch_size=st.integers(1, 5))
def test_batches_hold_windows_of_one_length_and_lose_none(lengths: list[int], batch_size: int) -> None:
    made = list(batches(range(len(lengths)), lengths, 8, 3, batch_size))
    assert all(len({window.length for window in batch}) == 1 and len(batch) <= batch_size for batch in made)
    expected = Counter(window for index, n in enumerate(lengths) for window in windows_of(index, n, 8, 3))
    assert Counter(window for batch in made for window in batch) == expected
    full = sum(len(batch) for batch in made if batch[0].length == 8)
    assert sum(batch[0].length == 8 for batch in made) == math.ceil(full / batch_size)


# --- truth -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(lambda lengths: max(lengths) > 1),
    context=st.integers(2, 12),
    batch_size=st.integers(1, 4),
    data=st.data(),
)
def test_equals_brute_force(lengths: list[int], context: int, batch_size: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    documents = random_documents(*lengths)
    result = run(documents, context=context, stride=stride, batch_size=batch_size)
    assert_matches_brute_force(result, LLAMA, documents, context, stride, atol=1e-10)
    assert result.documents == sum(length > 1 for length in lengths)
    assert result.short_documents == sum(length < context for length in lengths)
    assert result.tiny_documents == sum(length < 2 for length in lengths)


def test_a_different_prefix_would_be_noticed() -> None:
    """The brute-force tests mean something only if the loss depends on how far back a token sees."""
    [document] = random_documents(30)
    short, long = (np.mean(brute_force(LLAMA, document, context, 1)) for context in (4, 12))
    assert abs(short - long) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision(dtype: torch.dtype) -> None:
    model, documents = tiny_llama(dtype), random_documents(25, 11)
    result = run(documents, model, batch_size=2)
    assert result.dtype == str(dtype).removeprefix("torch.")
    assert_matches_brute_force(result, model, documents, 8, 3, atol={torch.float32: 1e-5}.get(dtype, 5e-2))


def test_peft_model() -> None:
    adapter = LoraConfig(
        r=2, target_modules=["q_proj", "o_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    model = get_peft_model(tiny_llama(), adapter, autocast_adapter_dtype=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    documents = random_documents(20, 5)
    result = run(documents, model)
    assert_matches_brute_force(result, model.eval(), documents, 8, 3, atol=1e-10)
    assert abs(result.nll - run(documents).nll) > 0.01


def test_model_that_caps_its_logits() -> None:
    """More than the output layer lies between the last hidden state and the logits."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=0.5,
        final_logit_softcapping=2.0,
        attn_implementation="eager",
    )
    model, documents = Gemma2ForCausalLM(config).double().eval(), random_documents(20, 6)
    assert_matches_brute_force(run(documents, model, batch_size=3), model, documents, 8, 3, atol=1e-6)


def test_training_pattern_stays_out_of_the_test_unless_told_and_labelled() -> None:
    documents = random_documents(20, 12)
    full = run(documents)
    trained = use_pattern(tiny_llama(), SF).train()
    assert run(documents, trained) == full
    assert full.attention == "full"

    kept = use_pattern(tiny_llama(), SF, evaluate_with_pattern=True)
    result = run(documents, kept)
    assert result.attention == "sf"
    losses = []
    for index, document in enumerate(documents):
        for window in windows_of(index, len(document), 8, 3):
            ids = torch.from_numpy(document[window.start : window.stop])
            with torch.no_grad():
                log_probabilities = kept(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
            losses += [
                -float(log_probabilities[t - window.start - 1, document[t]])
                for t in range(window.first, window.stop)
            ]
    assert_close(torch.tensor(result.nll), torch.tensor(math.fsum(losses) / len(losses)), atol=1e-10)
    assert abs(result.nll - full.nll) > 1e-3

    own = AttentionPattern(group_size=3, sink_tokens=1)
    assert (
        "group_size=3" in run(documents, use_pattern(tiny_llama(), own, evaluate_with_pattern=True)).attention
    )


def test_under_dynamic_positions_each_document_has_the_score_that_it_has_alone() -> None:
    # Beyond 16 tokens frequencies go by the longest text that transformers has seen since the last short one.
    model = extend_context(tiny_model("llama-gqa", max_position_embeddings=16).double(), 64, method="dynamic")
    documents, arguments = random_documents(64, 40, 16, 30, 100, 7), {"context": 64, "stride": 32}
    for score in run(documents, model, batch_size=2, **arguments).per_document:
        fresh = copy.deepcopy(model)
        [alone] = run([documents[score.index]], fresh, **arguments).per_document
        assert_close(score.nll, alone.nll, atol=1e-12)
    ids = torch.from_numpy(documents[1])
    with torch.no_grad():
        plain = model(input_ids=ids[None], use_cache=False, labels=ids[None]).loss
    assert_close(run(documents[:2], model, **arguments).per_document[1].nll, float(plain), atol=1e-6)


# --- cost --------------------------------------------------------------------------------------------------


def watched(model: nn.Module) -> tuple[list[int], list[tuple[int, ...]]]:
    """Rows that the output layer gets and shapes of the token ids, call by call."""
    rows: list[int] = []
    shapes: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(
        lambda _, inputs, __: rows.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    model.model.embed_tokens.register_forward_hook(
        lambda _, inputs, __: shapes.append(tuple(inputs[0].shape))
    )
    return rows, shapes


def test_only_scored_positions_get_logits_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, documents = tiny_llama(), random_documents(200, 30)
    expected = run(documents, batch_size=4)
    rows, shapes = watched(model)
    run(random_documents(2), model)
    overhead, probed = sum(rows) - 1, sum(count > 1 for count in rows)  # the probe, then one scored token
    rows.clear(), shapes.clear()
    monkeypatch.setattr(scored_logits, "LOGIT_ROWS", 5)
    result = run(documents, model, batch_size=4)
    assert_close(torch.tensor(result.nll), torch.tensor(expected.nll), atol=1e-12)
    assert sum(rows) - overhead == result.tokens == 228
    assert Counter(rows).most_common(1)[0][0] == 5 and sum(count > 5 for count in rows) == probed
    assert max(math.prod(shape) for shape in shapes) == 4 * 8


def test_windows_of_several_documents_run_together() -> None:
    model = tiny_llama()
    _, shapes = watched(model)
    run(random_documents(11, 11, 14), model, context=9, batch_size=16)
    assert [shape for shape in shapes if shape[1] == 9] == [(7, 9)]


# --- documents ---------------------------------------------------------------------------------------------


def test_short_documents_are_scored_skipped_or_refused() -> None:
    documents = random_documents(20, 5, 1, 8, 0)
    scored, skipped = run(documents), run(documents, short="skip")
    assert (scored.documents, scored.tokens) == (3, 19 + 4 + 7)
    assert (skipped.documents, skipped.tokens) == (2, 19 + 7)
    assert [score.index for score in skipped.per_document] == [0, 3]
    assert skipped.per_document == tuple(score for score in scored.per_document if score.index != 1)
    for result in (scored, skipped):
        assert (result.short_documents, result.tiny_documents) == (3, 2)
    with pytest.raises(
        ValueError, match=r"documents\[1\] has 5 tokens, fewer than context 8, and so have 2 others"
    ):
        run(documents, short="error")
    assert run(documents[:1], short="error").tokens == 19


def test_result_is_json_and_says_how_it_was_made() -> None:
    record = json.loads(json.dumps(run(random_documents(20)).to_dict()))
    assert record["context"] == 8 and record["stride"] == 3
    assert (record["attention"], record["dtype"], record["bos"]) == ("full", "float64", "as given")
    assert record["per_document"] == [{"index": 0, "tokens": 19, "nll": record["nll"]}]


def test_kinds_of_documents(tmp_path: Path) -> None:
    [document] = random_documents(20)
    np.save(tmp_path / "tokens.npy", document.astype(np.uint16))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    expected = run([document])
    assert run([mapped]) == run([document.tolist()]) == run([torch.from_numpy(document)]) == expected


# --- the model afterwards, the bar -------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_mode_back(fails: bool) -> None:
    model = tiny_llama().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    if fails:
        with torch.no_grad():
            model.lm_head.weight[3] = math.nan
        with pytest.raises(FloatingPointError, match=r"documents\[1\]: the model's loss is nan"):
            run([np.zeros(0, dtype=np.int64), *random_documents(20)], model)
    else:
        run(random_documents(20), model)
    assert [module.training for module in model.modules()] == before


def test_progress_bar_counts_windows(capsys: pytest.CaptureFixture[str]) -> None:
    run(random_documents(20, 3), progress=True)
    assert "perplexity at 8" in (shown := capsys.readouterr().err) and "6/6" in shown
    run(random_documents(20, 3))
    assert capsys.readouterr().err == ""


# --- bad input ---------------------------------------------------------------------------------------------

GOOD = random_documents(20)


@pytest.mark.parametrize(
    ("documents", "arguments", "error", "message"),
    [
        (GOOD, {"stride": 9}, ValueError, "stride=9: expected less than context=8"),
        (GOOD, {"stride": 8}, ValueError, "stride=8: expected less than context=8"),
        (GOOD, {"stride": 0}, ValueError, "stride=0: expected at least 1"),
        (GOOD, {"stride": 2.5}, TypeError, r"stride=2\.5: expected a whole number"),
        (GOOD, {"context": 1}, ValueError, "context=1: expected at least 2"),
        (GOOD, {"context": "8"}, TypeError, "context='8': expected a whole number"),
        (GOOD, {"batch_size": 0}, ValueError, "batch_size=0: expected at least 1"),
        (GOOD, {"batch_size": True}, TypeError, "batch_size=True: expected a whole number"),
        (GOOD, {"short": "drop"}, ValueError, "short='drop': expected one of score, skip, error"),
        ([], {}, ValueError, "documents: none of the 0 given"),
        (random_documents(1, 0), {}, ValueError, "documents: none of the 2 given has the 2 tokens"),
        (
            random_documents(5, 7),
            {"short": "skip"},
            ValueError,
            "documents: none of the 2 given has the 8 tokens",
        ),
        (GOOD[0], {}, ValueError, r"documents\[0\] has shape \(\)"),
        ([GOOD[0][None]], {}, ValueError, r"documents\[0\] has shape \(1, 20\)"),
        ([*GOOD, GOOD[0] / 2], {}, TypeError, r"documents\[1\] holds float64"),
        ([GOOD[0] > 3], {}, TypeError, r"documents\[0\] holds bool"),
        (["text"], {}, ValueError, r"documents\[0\] has shape"),
        ([["a", "b"]], {}, TypeError, r"documents\[0\] holds <U1"),
        ([*GOOD, GOOD[0] + 10], {}, ValueError, r"documents\[1\] holds token ids \d+ to \d+ .* 0 to 28"),
        ([GOOD[0] - 100], {}, ValueError, r"documents\[0\] holds token ids -"),
    ],
)
def test_bad_input_is_named_before_any_work(
    documents: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = tiny_llama()
    rows, _ = watched(model)
    with pytest.raises(error, match=message):
        run(documents, model, **arguments)
    assert rows == []


def test_model_of_another_kind_is_named() -> None:
    with pytest.raises(TypeError, match="transformers PreTrainedModel"):
        run(GOOD, nn.Linear(2, 2))
    with pytest.raises(TypeError, match="LlamaModel has no output layer; use AutoModelForCausalLM"):
        run(GOOD, tiny_llama().model)


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    documents = random_documents(60, 33, 5)
    model = tiny_llama(torch.float32)
    expected = run(documents, model, batch_size=4)
    result = run(documents, model, batch_size=4, device="cuda")
    assert next(model.parameters()).device.type == "cuda"
    assert_close(torch.tensor(result.nll), torch.tensor(expected.nll), atol=1e-4)
