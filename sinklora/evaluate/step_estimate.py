"""Peak memory and FLOPs of a training step, without a device."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sinklora.attention.pattern import triangle
from sinklora.attention.patterns import find_pattern
from sinklora.evaluate.memory import TensorMemory
from sinklora.evaluate.step_spec import EAGER, StepEstimate, StepSpec, training_model, training_step
from sinklora.hf.model_shapes import shape_config

KERNEL_FLOPS = {  # FlopCounterMode knows CUDA's fused attention alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
    ),
}


FEW, MORE = 2, 4  # layers that are run: where there are still more, each takes what those between take


def estimate(spec: StepSpec) -> StepEstimate:
    """Memory and FLOPs of a step, without a device: the same code runs on tensors without values.

    Of a model of more than `MORE` layers that are all alike, two with fewer are run. What a kernel holds
    inside itself is not in the bytes.
    """
    config = shape_config(spec.shape, spec.context)
    layers: int = config.num_hidden_layers
    if layers <= MORE or len(set(getattr(config, "layer_types", None) or [""])) > 1:
        return _estimate(spec, layers)
    pairs = zip(*(dataclasses.astuple(_estimate(spec, some)) for some in (FEW, MORE)), strict=True)
    return StepEstimate(*(more + (more - few) * (layers - MORE) // (MORE - FEW) for few, more in pairs))


def _estimate(spec: StepSpec, layers: int) -> StepEstimate:
    memory = TensorMemory()
    counter = _counted(spec, layers, memory)
    if spec.pattern == EAGER:
        spec = dataclasses.replace(spec, pattern="full")
        needed = _needed_flops(spec, layers, _counted(spec, layers, TensorMemory()))
    else:
        needed = _needed_flops(spec, layers, counter)
    return StepEstimate(memory.peak, counter.get_total_flops(), needed)


def _counted(spec: StepSpec, layers: int, memory: TensorMemory) -> FlopCounterMode:
    """The FLOPs of a first step, which makes the optimizer's state; then `memory` sees a second one."""
    fake = FakeTensorMode()
    model = training_model(spec, "meta", layers)
    _without_values(model, fake, memory)
    counter = FlopCounterMode(display=False, custom_mapping=KERNEL_FLOPS)
    with fake, memory:
        step = training_step(spec, model, checked=True)
        with counter:
            step()
        # The counter takes operations to pieces, which takes memory that a step does not.
        memory.peak = memory.now
        step()
    return counter


def _without_values(model: nn.Module, fake: FakeTensorMode, memory: TensorMemory) -> None:
    """Replace parameters and buffers on `meta` by tensors that pass for CPU ones; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    plain = FakeTensor(fake, tensor.detach(), torch.device("cpu"))
                    memory.add(plain)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(plain, tensor.requires_grad) if is_parameter else plain
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


def _needed_flops(spec: StepSpec, layers: int, counter: FlopCounterMode) -> int:
    """What was counted, with attention over the pairs that the pattern sees in place of whole squares.

    2 products forward, 2 again with checkpointing that keeps nothing, 5 backward.
    """
    counted = counter.get_flop_counts()["Global"]
    squares = sum(flops for name, flops in counted.items() if "scaled_dot_product" in str(name))
    config = shape_config(spec.shape, spec.context)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    pairs = find_pattern(spec.pattern).density(heads, spec.context) * triangle(spec.context)
    products = 2 + 2 * (spec.checkpointing and not spec.keeps_products) + 5
    attention = 2 * size * heads * pairs * products * layers * spec.batch
    return int(counter.get_total_flops()) - squares + round(attention)
