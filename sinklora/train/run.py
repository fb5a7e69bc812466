"""Training: a spec becomes a run directory with the model or adapter, its loss curve and provenance."""

import importlib.util
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    set_seed,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from sinklora.hf.model_names import check_model_name
from sinklora.hf.models import remove_pattern, use_pattern
from sinklora.hf.probe import check_packing
from sinklora.hf.rope import extend_context
from sinklora.lora.adapter import lora_plus
from sinklora.lora.checkpoint import load_adapter, save_adapter
from sinklora.pretrained.catalogue import packaged_record
from sinklora.pretrained.fetch import model_path
from sinklora.records.files import atomic_write
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import RunDirectory
from sinklora.train.chat_templates import TEMPLATE_FILE, template_text
from sinklora.train.data import TrainingData, training_data
from sinklora.train.divergence import StopWhereDiverged
from sinklora.train.instruction_spec import InstructionSpec
from sinklora.train.pattern_schedules import find_schedule
from sinklora.train.quantization import check_quantization, quantization_options
from sinklora.train.sharded_rows import accumulated_batches, process_count
from sinklora.train.shared_run import held_by_all
from sinklora.train.spec import TrainSpec
from sinklora.train.spent_seconds import SpentSeconds
from sinklora.train.trainer import (
    CheckGradients,
    ChunkedLossTrainer,
    FollowPatternSchedule,
    MarkComplete,
    files_below,
    gathered,
    know_each_other,
    last_complete_checkpoint,
    training_arguments,
)
from sinklora.train.whole_rounds import RowsAndBlanks

Spec = TrainSpec | InstructionSpec

CURVE = ("loss", "grad_norm", "learning_rate", "epoch", "step")  # the first columns of loss.csv


def load_base(spec: Spec) -> PreTrainedModel:
    """The base model in its dtype, extended to the context; random weights where the spec says so."""
    if isinstance(spec, TrainSpec) and spec.random_weights:
        set_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(model_path(spec.base)), dtype=torch.float32
        )
    else:
        dtype = getattr(torch, spec.frozen_dtype)
        options = quantization_options(spec.quantize) if isinstance(spec, InstructionSpec) else {}
        model = AutoModelForCausalLM.from_pretrained(model_path(spec.base), dtype=dtype, **options)
    if spec.context > model.config.max_position_embeddings:
        model = extend_context(model, spec.context, method=spec.rope)
    return model


def trainable_model(spec: Spec) -> torch.nn.Module:
    """The base with the pattern in training mode, and the adapter where the method is one.

    Where training arguments with ZeRO-3 exist, transformers divides the base's weights as they are read. Such
    a model cannot run yet, so that no probe looks at it, and a warning says so.
    """
    model, probe = load_base(spec), not is_deepspeed_zero3_enabled()
    if not probe:
        warnings.warn(
            f"base={spec.base!r}: ZeRO-3 has divided its weights, so that nothing checks whether its layers "
            "use the pattern and keep packed documents apart; where it is of another architecture than one "
            "trained before, train a step of it, or of a small model like it, without deepspeed first",
            stacklevel=2,
        )
    # Attention of a base in bfloat16 has a faster backward pass here, and that of cut rows is here alone.
    if spec.pattern != "full" or spec.frozen_dtype == "bfloat16" or spec.sequence_parallel > 1:
        use_pattern(model, spec.pattern_at(0, 1), probe=probe)
    if probe and (spec.pack if isinstance(spec, InstructionSpec) else spec.separate_documents):
        _check_packing(spec, model)
    set_seed(spec.seed)
    return lora_plus(model, rank=spec.rank, alpha=spec.alpha) if spec.method == "lora_plus" else model


def _check_packing(spec: Spec, model: PreTrainedModel) -> None:
    field = "pack=True" if isinstance(spec, InstructionSpec) else "separate_documents=True"
    try:
        check_packing(model)
    except ValueError as error:
        raise ValueError(f"{field}: with base={spec.base!r} and pattern={spec.pattern!r}: {error}") from error


def train(
    spec: Spec,
    *,
    runs: Path = Path("runs"),
    cache: Path | None = None,
    progress: bool = True,
    wait: bool = True,
) -> RunDirectory:
    """Train a spec, or reuse its finished run, or go on from its last complete checkpoint.

    Returns the run directory: `adapter/` or `model/`, `loss.csv` (step, loss, learning_rate,
    grad_norm), `spec.json`, `provenance.json`. Where another process trains the same, it waits for that
    one's outcome, under torchrun in all processes; without `wait` all raise RunLockedError. Raises
    DamagedRunError if a finished run no longer matches its record, DivergedError where loss or gradient are
    no finite numbers any more.
    """
    _check_deepspeed(spec.deepspeed)
    if isinstance(spec, InstructionSpec):
        check_quantization(spec.quantize)
    accumulated_batches(spec, process_count())  # refuses numbers that do not come out even
    check_model_name(spec.base, "base")
    tokenizer = AutoTokenizer.from_pretrained(model_path(spec.base))
    data = training_data(spec, tokenizer, cache=cache, progress=progress)
    readable = re.sub(r"[^A-Za-z0-9._]+", "_", spec.pattern).strip("_")
    run = RunDirectory(runs, data.key, prefix=f"{readable}-{spec.context}")
    with held_by_all(run, wait) as state:
        if state == "finished":
            run.verify()
        else:
            run.create()
            _train(spec, run, data, progress)
    return run


def _check_deepspeed(config: str | None) -> None:
    if config is not None and not Path(config).is_file():
        raise FileNotFoundError(f"deepspeed={config!r}: no such file; configs/deepspeed has two")
    if config is not None and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(f"deepspeed={config!r}: DeepSpeed is not installed; pip install 'sinklora[gpu]'")


def _warn_of_warmup(spec: Spec, steps: int) -> None:
    if spec.warmup_steps >= steps:
        warnings.warn(
            f"warmup_steps={spec.warmup_steps}: the run has {steps} steps, none of which comes to "
            f"learning_rate={spec.learning_rate:g}; train for more, or warm up in fewer",
            stacklevel=4,
        )


def _curve(history: list[dict[str, Any]]) -> pd.DataFrame:
    """The losses of a run's log, whose columns come back from a checkpoint in another order. Not every way to
    train logs all of CURVE.
    """
    curve = pd.DataFrame(row for row in history if "loss" in row)
    known = [name for name in CURVE if name in curve]
    return curve[[*known, *sorted(set(curve.columns) - set(CURVE))]]


def _train(spec: Spec, run: RunDirectory, data: TrainingData, progress: bool) -> None:
    _warn_of_warmup(spec, data.steps)
    work = run.path / "checkpoints"
    checkpoint = last_complete_checkpoint(work) if work.is_dir() else None
    spent = SpentSeconds(checkpoint)
    follow = [FollowPatternSchedule(spec)] if find_schedule(spec.pattern) else []
    arguments = training_arguments(spec, data.steps, work, progress)
    if spec.deepspeed is not None:
        know_each_other()
    trainer = ChunkedLossTrainer(
        model=trainable_model(spec),
        args=arguments,
        train_dataset=RowsAndBlanks(data.rows),
        data_collator=data.collate,
        callbacks=[spent, MarkComplete(), CheckGradients(), StopWhereDiverged(spec), *follow],
        spec=spec,
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)  # which takes the place of the bar, a line for each step
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if spec.pattern == "full":
        remove_pattern(model)
    with gathered(model):  # by all processes together
        saved = _save(spec, model, run.path) if trainer.is_world_process_zero() else []
    if not saved:
        return
    curve = _curve(trainer.state.log_history)
    atomic_write(run.path / "loss.csv", curve.to_csv(index=False))
    record = {
        **current_provenance(),
        **packaged_record(spec.base),
        "data": data.record,
        "seconds": spent.with_those_before(result.metrics["train_runtime"]),
        "processes": {"all": trainer.args.world_size, "to_a_row": trainer.groups.size},
    }
    atomic_write(run.path / "provenance.json", json.dumps(record, indent=1))
    run.finish([*saved, run.path / "loss.csv", run.path / "provenance.json"])
    shutil.rmtree(work)


def _save(spec: Spec, model: Any, folder: Path) -> list[Path]:
    """Write the outcome under a temporary name, rename, return its files."""
    final = folder / ("adapter" if spec.method == "lora_plus" else "model")
    temporary = folder / f".{final.name}"
    for stale in (final, temporary):
        shutil.rmtree(stale, ignore_errors=True)
    if spec.method == "lora_plus":
        save_adapter(model, temporary)
    else:
        model.save_pretrained(temporary)
    if isinstance(spec, InstructionSpec) and spec.template is not None:
        (temporary / TEMPLATE_FILE).write_text(template_text(spec.template), encoding="utf-8")
    temporary.rename(final)
    return files_below(final)


def load_trained(run: RunDirectory, spec: Spec) -> torch.nn.Module:
    """The model of a finished run, in evaluation mode; its files are checked first."""
    run.verify()
    if spec.method == "lora_plus":
        base = AutoModelForCausalLM.from_pretrained(model_path(spec.base), dtype=torch.float32)
        return load_adapter(base, run.path / "adapter").eval()
    return AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32).eval()
