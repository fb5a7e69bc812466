"""Packed documents, padding and masks given to a model with a pattern."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening, DynamicCache

from helpers import assert_close, every_pair
from pattern_models import dense_logits
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import FULL, S2, SF
from sinklora.cache.full import Full
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.document_ids import LostDocumentsError
from sinklora.hf.models import use_pattern
from tiny_models import ARCHITECTURES, TOKENS, make_batch, tiny_model

MASK_OF_ONES = torch.ones(2, TOKENS, dtype=torch.long)
LOST: dict[str, Callable[[], dict[str, object]]] = {
    "mask": lambda: {"attention_mask": MASK_OF_ONES, "use_cache": False},
    "default cache": dict,
    "dynamic cache": lambda: {"past_key_values": DynamicCache()},
}


@pytest.mark.parametrize(
    ("architecture", "inputs", "training"), every_pair(ARCHITECTURES, LOST, [True, False]), ids=str
)
def test_lost_document_starts_are_the_same_error_in_evaluation(
    architecture: str, inputs: str, training: bool
) -> None:
    batch = make_batch("packed")
    model = use_pattern(tiny_model(architecture), SF).train(training)
    with pytest.raises(LostDocumentsError, match="pass attention_mask=None and use_cache=False"):
        model(**batch.inputs | LOST[inputs]())


def flattened(*lengths: int, position_ids: bool = False) -> dict[str, Tensor]:
    """Documents of so many tokens, packed as transformers packs them for FlashAttention."""
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_position_ids=position_ids)
    rows = [{"input_ids": list(range(3, 3 + length))} for length in lengths]
    inputs: dict[str, Tensor] = collator(rows)
    return inputs


@pytest.mark.parametrize("training", [True, False])
def test_documents_that_only_their_lengths_tell_of_are_refused(training: bool) -> None:
    model = use_pattern(tiny_model("llama-gqa"), SF).train(training)
    with pytest.raises(LostDocumentsError, match=r"cu_seq_lens_q .* pass position_ids that restart"):
        model(**flattened(9, 7, 8), use_cache=False)
    model(**flattened(24), use_cache=False)  # one document
    rows = {"input_ids": torch.ones(2, 8, dtype=torch.long), "cu_seq_lens_q": torch.tensor([0, 8, 16])}
    model(**rows, use_cache=False)  # one a row


@pytest.mark.parametrize("training", [True, False])
def test_lengths_beside_positions_change_nothing(training: bool) -> None:
    model = use_pattern(tiny_model("llama-gqa"), SF).train(training)
    inputs = flattened(9, 7, 8, position_ids=True)
    plain = {name: inputs[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        logits = [model(**given, use_cache=False).logits for given in (inputs, plain)]
    assert torch.equal(*logits)


def test_a_budget_cache_refuses_documents_that_only_their_lengths_tell_of() -> None:
    model = tiny_model("llama-gqa")
    with torch.no_grad(), pytest.raises(LostDocumentsError, match="one document a row: unpack the rows"):
        model(**flattened(9, 7), past_key_values=BudgetCache(model, Full()))


@pytest.mark.parametrize("attention_mask", [None, MASK_OF_ONES], ids=["no mask", "mask of ones"])
@pytest.mark.parametrize("pattern", [None, SF], ids=["plain", "pattern"])
def test_a_budget_cache_refuses_packed_documents(
    pattern: Pattern | None, attention_mask: Tensor | None
) -> None:
    inputs = make_batch("packed").inputs | {"attention_mask": attention_mask}
    model = tiny_model("llama-gqa")
    if pattern is not None:
        use_pattern(model, pattern)
    cache = BudgetCache(model, Full())
    with torch.no_grad(), pytest.raises(LostDocumentsError, match="one document a row: unpack the rows"):
        model(**inputs, past_key_values=cache)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("chunk", [None, 4], ids=["whole prompt", "chunks"])
@pytest.mark.parametrize("cache", ["dynamic", "static", "budget"])
def test_padded_generation_is_not_taken_for_packed_documents(cache: str, chunk: int | None) -> None:
    # The positions of padding are all 1, and restart where the row begins.
    batch, model = make_batch("left-padded"), use_pattern(tiny_model("llama-gqa"), SF)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "disable_compile": True}
    expected = tiny_model("llama-gqa").generate(**batch.inputs, **options)
    caches = {"dynamic": DynamicCache(), "budget": BudgetCache(model, Full())}
    options |= {"past_key_values": caches[cache]} if cache in caches else {"cache_implementation": cache}
    actual = model.generate(**batch.inputs, **options, prefill_chunk_size=chunk)
    assert actual.tolist() == expected.tolist()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_positions_that_jump_are_one_document_with_a_mask_of_ones(training: bool) -> None:
    positions = torch.cat([torch.arange(10), torch.arange(40, 30 + TOKENS)]).expand(2, -1)
    inputs = make_batch("plain").inputs | {"position_ids": positions, "use_cache": False}
    causal = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    expected = tiny_model("llama-gqa")(**inputs, attention_mask=causal).logits
    model = use_pattern(tiny_model("llama-gqa"), FULL).train(training)
    assert_close(model(**inputs, attention_mask=MASK_OF_ONES).logits, expected, atol=2e-5)


def test_positions_of_padding_do_not_count_as_documents() -> None:
    # What generation-style code passes: positions counted from the first real token, padding set to 1.
    batch = make_batch("left-padded")
    model = use_pattern(tiny_model("llama-gqa"), SF).train()
    mask = batch.inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    actual = model(**batch.inputs, position_ids=positions, use_cache=False).logits[1:, 7:]
    expected = model(input_ids=batch.inputs["input_ids"][1:, 7:], use_cache=False).logits
    assert_close(actual, expected, atol=2e-5)


def test_gap_in_the_padding() -> None:
    batch = make_batch("plain")
    mask = torch.ones_like(batch.inputs["input_ids"])
    mask[0, 5:8] = 0
    model = tiny_model("llama-gqa")
    expected = model(**batch.inputs, attention_mask=mask).logits
    use_pattern(model, SF)
    assert torch.equal(model(**batch.inputs, attention_mask=mask).logits, expected)
    with pytest.raises(ValueError, match="attention_mask has gaps"):
        model.train()(**batch.inputs, attention_mask=mask)


def test_four_dimensional_mask() -> None:
    batch = make_batch("packed")
    model = tiny_model("llama-gqa")
    expected = dense_logits(model, S2, batch)
    use_pattern(model, SF)
    assert torch.equal(dense_logits(model, S2, batch), expected)
    with pytest.raises(ValueError, match="4-D attention mask"):
        dense_logits(model.train(), S2, batch)


def test_continuing_a_cache_in_training_mode_is_an_error() -> None:
    batch = make_batch("plain")
    model = use_pattern(tiny_model("llama-gqa"), SF).train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) before generating"):
        model.generate(**batch.inputs, max_new_tokens=3)
