"""One training step: its spec, its model, and the function that takes it.

Weights are random (`hf.model_shapes`): time and memory do not depend on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn

from sinklora.attention.patterns import find_pattern
from sinklora.hf.model_shapes import random_model, shape_config
from sinklora.hf.models import use_pattern
from sinklora.lora.adapter import lora_plus
from sinklora.records.checks import Count, check_fields, one_of
from sinklora.train.checkpointing import keep_products
from sinklora.train.loss import ChunkedLoss
from sinklora.train.settings import METHODS

EAGER = "eager"  # full attention with all scores in memory, as before FlashAttention


@dataclass(frozen=True)
class StepSpec:
    """One training step: forward, chunked loss, backward and AdamW on `batch` rows of `context` tokens.

    `shape`: a name of `model_shapes`, a packaged model's, or a model's folder. `pattern`: a pattern's name,
    or "eager" for full attention with all scores in memory. `method` "lora_plus" trains adapters, embeddings
    and norms, "full" everything; what is trained is float32, what is frozen bfloat16 (float32 without
    `half_base`), computed under bfloat16 autocast; without `bf16` all is float32, as in `TrainSpec`. `fused`:
    as `sinklora train` takes the step with a frozen base in bfloat16: the loss fused, no casts to float32,
    and on the CPU checkpoints that keep products.
    Raises TypeError or ValueError naming the field.
    """

    shape: str = "base"
    context: Count = 2048
    pattern: str = "sf"
    method: Annotated[str, one_of(METHODS)] = "lora_plus"
    batch: Count = 1
    checkpointing: bool = True
    loss_chunk: Count = 2048
    device: Annotated[str, one_of(("cpu", "cuda"))] = "cpu"
    fused: bool = False
    bf16: bool = True
    half_base: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.pattern != EAGER:
            find_pattern(self.pattern)
        shape_config(self.shape, self.context)
        if self.fused and (self.method, self.bf16, self.half_base) != ("lora_plus", True, True):
            raise ValueError(
                "fused=True: needs method='lora_plus', bf16=True and half_base=True, got "
                f"{self.method!r}, {self.bf16} and {self.half_base}"
            )

    @property
    def keeps_products(self) -> bool:
        """Whether checkpoints keep products, as those of training do on the CPU (`train.checkpointing`)."""
        return self.checkpointing and self.fused and self.device == "cpu"

    def key(self) -> dict[str, Any]:
        """What a measurement is known by; fields that the first ones did not have only where they differ."""
        later = {"fused": False, "bf16": True, "half_base": True}
        return {name: value for name, value in asdict(self).items() if later.get(name) is not value}


@dataclass(frozen=True)
class StepCost:
    """Seconds (median), peak bytes; None where memory did not suffice.

    On the CPU the peak is of resident memory, above that of a process that has taken the same step before and
    freed it; on CUDA it is of all that tensors take.

    `certain` is False where it might have sufficed, had no other process held some of the device's.
    """

    seconds: float | None
    peak_bytes: int | None
    certain: bool = True


@dataclass(frozen=True)
class StepEstimate:
    """Peak bytes; FLOPs as PyTorch counts them (windows and rows as whole squares), and those needed."""

    peak_bytes: int
    counted_flops: int
    needed_flops: int


def training_model(spec: StepSpec, device: str, layers: int | None = None) -> nn.Module:
    """A random model of the spec in training mode, with its pattern, adapter and checkpointing; with `layers`
    in place of its own.
    """
    half = spec.bf16 and spec.half_base and spec.method != "full"
    dtype = torch.bfloat16 if half else torch.float32
    model: Any = random_model(spec.shape, spec.context, layers=layers, dtype=dtype, device=device)
    if spec.pattern == EAGER:
        model.set_attn_implementation("eager")
    else:  # "full" as well, so that all but eager attention run on the same code
        use_pattern(model, spec.pattern, probe=False)
    if spec.method == "lora_plus":
        model = lora_plus(model)
    if spec.keeps_products:
        keep_products(model)
    elif spec.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def training_step(spec: StepSpec, model: nn.Module, *, checked: bool = False) -> Callable[[], None]:
    """A function that takes one step on random tokens; `checked` skips the loss's look at values."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, fused=True)  # as the Trainer's
    loss = ChunkedLoss(spec.loss_chunk, fused=spec.fused)
    loss.checked = checked
    vocabulary: int = shape_config(spec.shape, spec.context).vocab_size
    ids = torch.randint(vocabulary, (spec.batch, spec.context), device=trained[0].device)

    def step() -> None:
        with disable_input_dtype_casting(model) if spec.fused else nullcontext():
            with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=spec.bf16):
                value = loss(model, ids, ids)
            value.backward()  # within: checkpoints compute here too
        optimizer.step()
        optimizer.zero_grad()

    return step
