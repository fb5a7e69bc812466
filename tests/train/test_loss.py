"""The chunked loss against the model's own, in value and in every gradient."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma2Config

from helpers import assert_close
from sinklora.lora.adapter import lora_plus
from sinklora.train.loss import ChunkedLoss
from tiny_models import tiny_config


def inputs(vocabulary: int, masked: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, vocabulary, (3, 21))
    labels = ids.clone()
    if masked:
        labels[:, ::3] = -100
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("chunk", [1, 7, 20, 1000])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("architecture", ["llama-gqa", "gemma-mqa", "neox-mha"])
def test_equals_the_models_own_loss(architecture: str, masked: bool, chunk: int) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(architecture)).train()
    batch = inputs(model.config.vocab_size, masked)
    own = model(**batch).loss
    expected = torch.autograd.grad(own, list(model.parameters()))
    loss = ChunkedLoss(chunk)(model, **batch)
    assert_close(loss, own, atol=1e-6)
    for actual, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        assert_close(actual, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_adapters(checkpointing: bool) -> None:
    model = lora_plus(AutoModelForCausalLM.from_config(tiny_config("llama-mha")), rank=2).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = inputs(model.config.vocab_size, masked=False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    own = model(**batch, use_cache=False).loss
    expected = torch.autograd.grad(own, trainable)
    loss = ChunkedLoss(8)(model, **batch)
    assert_close(loss, own, atol=1e-6)
    for actual, wanted in zip(torch.autograd.grad(loss, trainable), expected, strict=True):
        assert_close(actual, wanted, atol=1e-6, rtol=1e-5)


def test_an_output_layer_that_zero_3_divides_is_called_as_a_layer() -> None:
    """Which gathers its weights; those that it holds outside of a call are empty."""
    model = AutoModelForCausalLM.from_config(tiny_config("llama-mha")).train()
    batch = inputs(model.config.vocab_size, masked=True)
    head = model.get_output_embeddings()
    rows: list[int] = []
    head.register_forward_hook(lambda module, given, output: rows.append(given[0].shape[0]))
    whole = ChunkedLoss(1000, fused=True)(model, **batch)
    called = len(rows)
    head.weight.ds_id = 0
    divided = ChunkedLoss(1000, fused=True)(model, **batch)
    assert_close(divided, whole, atol=1e-6)
    assert rows[called:] == [*rows[:called], 60]


class Largest(TorchDispatchMode):
    """Records the largest tensor any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, list | tuple) else [result]:
            if isinstance(item, torch.Tensor):
                self.numbers = max(self.numbers, item.numel())
        return result


def test_no_tensor_of_tokens_by_vocabulary() -> None:
    tokens, vocabulary, chunk = 512, 3000, 16
    config = tiny_config("llama-mha", vocab_size=vocabulary, max_position_embeddings=tokens)
    model = AutoModelForCausalLM.from_config(config).train()
    ids = torch.randint(0, vocabulary, (1, tokens))
    with Largest() as seen:
        ChunkedLoss(chunk)(model, ids, ids).backward()
    parameters = max(p.numel() for p in model.parameters())
    assert seen.numbers <= max(chunk * vocabulary, parameters, 4 * tokens * tokens)
    assert seen.numbers < tokens * vocabulary / 1.4


def test_a_batch_without_labels_has_loss_zero() -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama-mha")).train()
    ids = torch.randint(0, 50, (1, 9))
    loss = ChunkedLoss(4)(model, ids, torch.full_like(ids, -100))
    assert loss.item() == 0


def test_soft_capped_models_are_refused() -> None:
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(0, 50, (1, 9))
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        ChunkedLoss(4)(model, ids, ids)


def test_chunk_is_checked() -> None:
    with pytest.raises(ValueError, match="chunk=0"):
        ChunkedLoss(0)
