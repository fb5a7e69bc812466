"""What a training step takes: seconds, peak memory and FLOPs, measured, predicted, and ideal (Fig. 1).

    python -m sinklora.evaluate.efficiency --estimate llama2-7b 65536 sf
    python -m sinklora.evaluate.efficiency --measure base 8192 sf

Weights are random (`model_shapes`): time and memory do not depend on their values.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sinklora.files import write_json
from sinklora.lora import lora_plus
from sinklora.loss import ChunkedLoss
from sinklora.memory import TensorMemory, reset_resident_peak, resident_bytes, resident_peak_bytes
from sinklora.model_shapes import random_model, shape_config
from sinklora.models import use_pattern
from sinklora.pattern_base import triangle
from sinklora.patterns import find_pattern
from sinklora.provenance import provenance
from sinklora.runs import RunDirectory

__all__ = [
    "EAGER",
    "METHODS",
    "StepCost",
    "StepEstimate",
    "StepSpec",
    "estimate",
    "measure",
    "measured",
]

METHODS = ("lora_plus", "full")  # as in TrainSpec
EAGER = "eager"  # full attention with all scores in memory, as before FlashAttention
KERNEL_FLOPS = {  # FlopCounterMode knows CUDA's fused attention alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q, k, v
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v)
    ),
}
# For time glibc keeps what was freed, for memory it gives it back, else one would be measured in the other.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
# Of a CUDA device: its driver, this process's libraries and the context of the one that started it hold less.
IDLE_BYTES = 3 * 2**30
RETRY_SECONDS = 60.0  # until a process that is ending has given back what it holds of a device
RETURN_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class StepSpec:
    """One training step: forward, chunked loss, backward and AdamW on ``batch`` rows of ``context`` tokens.

    ``shape``: a name of `model_shapes` or a model's folder. ``pattern``: a pattern's name, or "eager" for
    full attention with all scores in memory. ``method`` "lora_plus" trains adapters, embeddings and norms,
    "full" everything; what is trained is float32, what is frozen bfloat16, computed under bfloat16 autocast.
    Raises ValueError naming the argument.
    """

    shape: str = "base"
    context: int = 2048
    pattern: str = "sf"
    method: str = "lora_plus"
    batch: int = 1
    checkpointing: bool = True
    loss_chunk: int = 2048
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: expected one of {METHODS}")
        for name in ("context", "batch", "loss_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r}: expected 'cpu' or 'cuda'")
        if self.pattern != EAGER:
            find_pattern(self.pattern)
        shape_config(self.shape, self.context)


@dataclass(frozen=True)
class StepCost:
    """Seconds (median), peak bytes; None where memory did not suffice.

    On the CPU the peak is of resident memory, above that of a process that has taken the same step before and
    freed it; on CUDA it is of all that tensors take.

    ``certain`` is False where it might have sufficed, had no other process held some of the device's.
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


def training_model(spec: StepSpec, device: str) -> nn.Module:
    """A random model of the spec in training mode, with its pattern, adapter and checkpointing."""
    dtype = torch.float32 if spec.method == "full" else torch.bfloat16
    model: Any = random_model(spec.shape, spec.context, dtype=dtype, device=device)
    if spec.pattern == EAGER:
        model.set_attn_implementation("eager")
    else:  # "full" as well, so that all but eager attention run on the same code
        use_pattern(model, spec.pattern, probe=False)
    if spec.method == "lora_plus":
        model = lora_plus(model)
    if spec.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def training_step(spec: StepSpec, model: nn.Module, *, checked: bool = False) -> Callable[[], None]:
    """A function that takes one step on random tokens; `checked` skips the loss's look at values."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, fused=True)  # as the Trainer's
    loss = ChunkedLoss(spec.loss_chunk)
    loss.checked = checked
    vocabulary: int = shape_config(spec.shape, spec.context).vocab_size
    ids = torch.randint(vocabulary, (spec.batch, spec.context), device=trained[0].device)

    def step() -> None:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            value = loss(model, ids, ids)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def estimate(spec: StepSpec) -> StepEstimate:
    """Memory and FLOPs of a step, without a device: the same code runs on tensors without values.

    What a kernel holds inside itself is not in the bytes.
    """
    fake = FakeTensorMode()
    memory = TensorMemory()
    model = training_model(spec, "meta")
    _without_values(model, fake, memory)
    counter = FlopCounterMode(display=False, custom_mapping=KERNEL_FLOPS)
    with fake, memory:
        step = training_step(spec, model, checked=True)
        step()  # makes the optimizer's state
        step()
    with fake, counter:  # apart: the counter takes operations to pieces, which would take memory
        step()
    if spec.pattern == EAGER:
        needed = estimate(dataclasses.replace(spec, pattern="full")).needed_flops
    else:
        needed = _needed_flops(spec, counter)
    return StepEstimate(memory.peak, counter.get_total_flops(), needed)


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


def _needed_flops(spec: StepSpec, counter: FlopCounterMode) -> int:
    """What was counted, with attention over the pairs that the pattern sees in place of whole squares.

    2 products forward, 2 again with checkpointing, 5 backward.
    """
    counted = counter.get_flop_counts()["Global"]
    squares = sum(flops for name, flops in counted.items() if "scaled_dot_product" in str(name))
    config = shape_config(spec.shape, spec.context)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    pairs = find_pattern(spec.pattern).density(heads, spec.context) * triangle(spec.context)
    products = 2 + 2 * spec.checkpointing + 5
    attention = 2 * size * heads * pairs * products * config.num_hidden_layers * spec.batch
    return int(counter.get_total_flops()) - squares + round(attention)


def measure(spec: StepSpec, repeats: int = 3) -> StepCost:
    """Time and peak memory of real steps in this process, which should be a fresh one.

    The first step is not timed; the peak is over all. Without enough device memory both are None. On the CPU
    the peak is of resident memory, above what the process holds after the same step was taken once and freed:
    libraries and compiled kernels, some 50 MB more than an idle process holds.
    """
    cuda = spec.device == "cuda"
    held_before = _held_by_others() if cuda else 0
    if not cuda:
        step = training_step(spec, training_model(spec, spec.device))
        step()
        del step
        gc.collect()
        before = resident_bytes()
        reset_resident_peak()
    try:
        step = training_step(spec, training_model(spec, spec.device))
        step()
        seconds = [_timed(step, cuda) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        return StepCost(None, None, certain=max(held_before, _held_by_others()) <= IDLE_BYTES)
    peak = torch.cuda.max_memory_allocated() if cuda else resident_peak_bytes() - before
    return StepCost(statistics.median(seconds), peak)


def _held_by_others() -> int:
    """Bytes of the CUDA device that neither are free nor belong to this process's tensors."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _device_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def _timed(step: Callable[[], None], cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(spec: StepSpec, *, runs: Path, repeats: int = 3, time_it: bool = True) -> StepCost:
    """`measure` in a process of its own, kept in a run directory for this machine and these versions.

    On the CPU memory and time are measured in two processes, since the C library's settings for one spoil the
    other; without `time_it` only the first (its seconds are then None).

    What did not fit a CUDA device that others used, but might have, is tried once more a minute later and
    never kept: it may fit when they are gone. Raises RuntimeError where they still hold some of it.
    """
    known = provenance()
    machine = {name: known[name] for name in ("versions", "hardware", "threads")}
    machine["versions"] = {name: machine["versions"][name] for name in ("torch", "transformers", "peft")}
    key = {"step": asdict(spec), "repeats": repeats, "time_it": time_it, "machine": machine}
    run = RunDirectory(runs, key, prefix="step")

    def work(folder: Path) -> list[str]:
        if spec.device == "cuda":
            cost = _on_cuda(spec, repeats)
        else:
            peak = _in_own_process(spec, 1, RETURN_MEMORY).peak_bytes
            seconds = _in_own_process(spec, repeats, KEEP_MEMORY).seconds if time_it else None
            cost = StepCost(seconds, peak)
        kept = {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes}
        write_json(folder / "cost.json", {**kept, "provenance": known})
        return ["cost.json"]

    found = json.loads((run.reuse_or(work) / "cost.json").read_text(encoding="utf-8"))
    return StepCost(found["seconds"], found["peak_bytes"])


def _on_cuda(spec: StepSpec, repeats: int) -> StepCost:
    cost = _in_own_process(spec, repeats, {})
    if cost.certain or estimate(spec).peak_bytes > _device_bytes():
        return cost
    time.sleep(RETRY_SECONDS)
    cost = _in_own_process(spec, repeats, {})
    if cost.certain:
        return cost
    raise RuntimeError(
        f"the step of {spec} ran out of memory while other processes held more than "
        f"{IDLE_BYTES / 2**30:.0f} GiB of the device; run it again when they are gone"
    )


def _in_own_process(spec: StepSpec, repeats: int, environment: dict[str, str]) -> StepCost:
    code = (
        "import json, sys; from dataclasses import asdict; "
        "from sinklora.evaluate.efficiency import StepSpec, measure; "
        "print(json.dumps(asdict(measure(StepSpec(**json.loads(sys.argv[1])), int(sys.argv[2])))))"
    )
    command = [sys.executable, "-c", code, json.dumps(asdict(spec)), str(repeats)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        killed = " (killed: too little memory?)" if done.returncode < 0 else ""
        raise RuntimeError(f"the step of {spec} failed{killed}:\n{done.stderr.strip()[-2000:]}")
    return StepCost(**json.loads(done.stdout.splitlines()[-1]))


def _describe(spec: StepSpec) -> str:
    return f"{spec.shape}, {spec.context} tokens, {spec.pattern}, {spec.method}, {spec.device}"


def main(
    estimate_of: Annotated[
        tuple[str, int, str] | None, typer.Option("--estimate", help="shape, tokens, pattern")
    ] = None,
    measure_of: Annotated[
        tuple[str, int, str] | None, typer.Option("--measure", help="shape, tokens, pattern")
    ] = None,
    method: Annotated[str, typer.Option(help=f"one of {', '.join(METHODS)}")] = "lora_plus",
    batch: Annotated[int, typer.Option(help="rows")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="recompute activations")] = True,
    device: Annotated[str, typer.Option(help="of --measure: cpu or cuda")] = "cpu",
    repeats: Annotated[int, typer.Option(help="timed steps")] = 3,
    runs: Annotated[Path, typer.Option(help="where measurements are kept")] = Path("runs"),
) -> None:
    """Predict or measure the memory and time of one training step."""
    if (estimate_of is None) == (measure_of is None):
        raise typer.BadParameter("give either --estimate or --measure, as in --estimate llama2-7b 65536 sf")
    shape, context, pattern = estimate_of or measure_of or ("", 0, "")
    try:
        spec = StepSpec(shape, context, pattern, method, batch, checkpointing, device=device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if estimate_of:
        found = estimate(spec)
        typer.echo(
            f"{_describe(spec)}: {found.peak_bytes / 2**30:.2f} GiB at its peak, "
            f"{found.needed_flops / 1e12:.2f} TFLOP"
        )
        return
    cost = measured(spec, runs=runs, repeats=repeats)
    if cost.peak_bytes is None or cost.seconds is None:
        typer.echo(f"{_describe(spec)}: does not fit")
        raise typer.Exit(1)
    typer.echo(f"{_describe(spec)}: {cost.peak_bytes / 2**30:.2f} GiB at its peak, {cost.seconds:.3f} s")


if __name__ == "__main__":
    typer.run(main)
