"""Tiny random models of the architectures that the tests run over, and the inputs they are given."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 61
HEADS = 4
TOKENS = 24
CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
}
ARCHITECTURES = ["llama-mha", "llama-gqa", "mistral-gqa", "qwen2-gqa", "qwen3-gqa", "gemma-mqa", "neox-mha"]
KEY_VALUE_HEADS = {"mha": HEADS, "gqa": 2, "mqa": 1}


def tiny_config(architecture: str, **changes: object) -> PreTrainedConfig:
    name, heads = architecture.split("-")
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "neox":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        options = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "rope_parameters": rope}
        return GPTNeoXConfig(**(sizes | options | changes))
    options = {"num_key_value_heads": KEY_VALUE_HEADS[heads]}
    if name == "mistral":
        options["sliding_window"] = None
    if name in ("gemma", "qwen3"):
        options["head_dim"] = 8
    return CONFIGS[name](**(sizes | options | changes))


def tiny_model(architecture: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A model in evaluation mode whose weights are large enough that attention matters to the logits."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the initialization, and biases and norms away from their neutral values.
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return model.eval()


@dataclass(frozen=True)
class Batch:
    """Two rows of tokens, the inputs that describe them, and what a dense reference needs to know of them."""

    inputs: dict[str, Tensor | None]
    document_ids: Tensor
    position_ids: Tensor

    @property
    def real(self) -> Tensor:
        return self.document_ids > 0


def make_batch(layout: str, tokens: int = TOKENS, seed: int = 1) -> Batch:
    ids = torch.randint(3, VOCABULARY, (2, tokens), generator=torch.Generator().manual_seed(seed))
    plain = torch.arange(tokens).expand(2, -1)
    one = torch.ones_like(ids)
    if layout == "plain":
        return Batch({"input_ids": ids}, one, plain)
    if layout == "packed":
        lengths = ([5, 12, tokens - 17], [tokens - 9, 1, 8])
        positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
        documents = (positions == 0).long().cumsum(-1)
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": None}
        return Batch(inputs, documents, positions)
    mask = one.clone()
    if layout == "left-padded":
        mask[1, :7] = 0
    elif layout == "right-padded":
        mask[1, -7:] = 0
    else:
        raise ValueError(f"unknown layout {layout!r}")
    return Batch({"input_ids": ids * mask, "attention_mask": mask}, mask, plain)
