"""Models with a pattern, and their truth: the same model under `sdpa` with a dense 4-D mask."""

import copy

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sinklora.attention.pattern import Pattern
from tiny_models import HEADS, VOCABULARY, Batch


def dense_mask(pattern: Pattern, batch: Batch) -> Tensor:
    """The additive float mask [B, H, N, N] that says the same as the pattern; padding is its own document."""
    visible = pattern.visible(HEADS, batch.document_ids.shape[1], batch.document_ids)
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)


def dense_model(model: PreTrainedModel) -> PreTrainedModel:
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("sdpa")
    return reference


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """Sum of squares over real tokens, so that every logit of a real token has its own gradient."""
    return (logits[batch.real].float() ** 2).mean()


def gradients(model: nn.Module, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(logits, batch).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def pattern_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    return model(**batch.inputs, use_cache=False).logits


def dense_logits(model: PreTrainedModel, pattern: Pattern, batch: Batch) -> Tensor:
    mask = dense_mask(pattern, batch)
    ids, positions = batch.inputs["input_ids"], batch.position_ids
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def small_model(config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"bos_token_id": 1, "eos_token_id": 2}
