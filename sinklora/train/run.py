"""Training: a TrainSpec becomes a run directory with the model or adapter, its loss curve and provenance."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    set_seed,
)

from sinklora.hf.model_names import check_model_name
from sinklora.hf.models import remove_pattern, use_pattern
from sinklora.hf.rope import extend_context
from sinklora.lora.adapter import lora_plus
from sinklora.lora.checkpoint import load_adapter, save_adapter
from sinklora.pretrained.catalogue import packaged_record
from sinklora.pretrained.fetch import model_path
from sinklora.records.files import atomic_write
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import RunDirectory
from sinklora.train.pattern_schedules import find_schedule
from sinklora.train.rows import MixedRows, NeedleRows, PackedRows
from sinklora.train.sharded_rows import check_processes, process_count
from sinklora.train.spec import TrainSpec, identity
from sinklora.train.tokens import TokenizedCorpus, corpus_record, tokenize_corpus
from sinklora.train.trainer import (
    CheckGradients,
    ChunkedLossTrainer,
    FollowPatternSchedule,
    MarkComplete,
    files_below,
    gathered,
    last_complete_checkpoint,
    training_arguments,
)


def load_base(spec: TrainSpec) -> PreTrainedModel:
    """The base model in its dtype, extended to the context; random weights where the spec says so."""
    if spec.random_weights:
        set_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(model_path(spec.base)), dtype=torch.float32
        )
    else:
        dtype = getattr(torch, spec.frozen_dtype)
        model = AutoModelForCausalLM.from_pretrained(model_path(spec.base), dtype=dtype)
    if spec.context > model.config.max_position_embeddings:
        model = extend_context(model, spec.context, method=spec.rope)
    return model


def trainable_model(spec: TrainSpec) -> torch.nn.Module:
    """The base with the pattern in training mode, and the adapter where the method is one."""
    model = load_base(spec)
    # Attention of a base in bfloat16 has a faster backward pass here, and that of cut rows is here alone.
    if spec.pattern != "full" or spec.frozen_dtype == "bfloat16" or spec.sequence_parallel > 1:
        use_pattern(model, spec.attention_pattern())
    set_seed(spec.seed)
    return lora_plus(model, rank=spec.rank, alpha=spec.alpha) if spec.method == "lora_plus" else model


def training_rows(
    spec: TrainSpec, corpus: TokenizedCorpus, tokenizer: PreTrainedTokenizerBase
) -> torch.utils.data.Dataset[dict[str, torch.Tensor]]:
    """Packed rows of the corpus, with the spec's share of recall rows mixed in."""
    rows = PackedRows(corpus, spec.context, separate_documents=spec.separate_documents)
    if not spec.recall_share:
        return rows
    return MixedRows(rows, NeedleRows(tokenizer, spec.context, len(rows), spec.seed), spec.recall_share)


def train(
    spec: TrainSpec, *, runs: Path = Path("runs"), cache: Path | None = None, progress: bool = True
) -> RunDirectory:
    """Train a spec, or reuse its finished run, or go on from its last complete checkpoint.

    Returns the run directory: ``adapter/`` or ``model/``, ``loss.csv`` (step, loss, learning_rate,
    grad_norm), ``spec.json``, ``provenance.json``. Raises DamagedRunError if a finished run no longer
    matches its record.
    """
    _check_deepspeed(spec.deepspeed)
    check_processes(spec.sequence_parallel, process_count())
    check_model_name(spec.base, "base")
    tokenizer = AutoTokenizer.from_pretrained(model_path(spec.base))
    corpus = tokenize_corpus(spec.corpus, tokenizer, cache=cache, progress=progress)
    readable = re.sub(r"[^A-Za-z0-9._]+", "_", spec.pattern).strip("_")
    run = RunDirectory(runs, identity(spec, corpus), prefix=f"{readable}-{spec.context}")
    if run.state() == "finished":
        run.verify()
        return run
    with run.lock():
        if run.state() != "finished":
            run.create()
            _train(spec, run, corpus, tokenizer, progress)
    return run


def _check_deepspeed(config: str | None) -> None:
    if config is not None and not Path(config).is_file():
        raise FileNotFoundError(f"deepspeed={config!r}: no such file; configs/deepspeed has two")
    if config is not None and importlib.util.find_spec("deepspeed") is None:
        raise ImportError(f"deepspeed={config!r}: DeepSpeed is not installed; pip install 'sinklora[gpu]'")


def _train(
    spec: TrainSpec,
    run: RunDirectory,
    corpus: TokenizedCorpus,
    tokenizer: PreTrainedTokenizerBase,
    progress: bool,
) -> None:
    work = run.path / "checkpoints"
    follow = [FollowPatternSchedule(spec)] if find_schedule(spec.pattern) else []
    trainer = ChunkedLossTrainer(
        model=trainable_model(spec),
        args=training_arguments(spec, work, progress),
        train_dataset=training_rows(spec, corpus, tokenizer),
        callbacks=[MarkComplete(), CheckGradients(), *follow],
        spec=spec,
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)  # which takes the place of the bar, a line for each step
    checkpoint = last_complete_checkpoint(work) if work.is_dir() else None
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if spec.pattern == "full":
        remove_pattern(model)
    with gathered(model):  # by all processes together
        saved = _save(spec, model, run.path) if trainer.is_world_process_zero() else []
    if not saved:
        return
    curve = pd.DataFrame(row for row in trainer.state.log_history if "loss" in row)
    atomic_write(run.path / "loss.csv", curve.to_csv(index=False))
    record = {
        **current_provenance(),
        **packaged_record(spec.base),
        "data": corpus_record(spec.corpus, corpus),
        "seconds": result.metrics["train_runtime"],
        "processes": {"all": trainer.args.world_size, "to_a_row": trainer.groups.size},
    }
    atomic_write(run.path / "provenance.json", json.dumps(record, indent=1))
    run.finish([*saved, run.path / "loss.csv", run.path / "provenance.json"])
    shutil.rmtree(work)


def _save(spec: TrainSpec, model: Any, folder: Path) -> list[Path]:
    """Write the outcome under a temporary name, rename, return its files."""
    final = folder / ("adapter" if spec.method == "lora_plus" else "model")
    temporary = folder / f".{final.name}"
    for stale in (final, temporary):
        shutil.rmtree(stale, ignore_errors=True)
    if spec.method == "lora_plus":
        save_adapter(model, temporary)
    else:
        model.save_pretrained(temporary)
    temporary.rename(final)
    return files_below(final)


def load_trained(run: RunDirectory, spec: TrainSpec) -> torch.nn.Module:
    """The model of a finished run, in evaluation mode; its files are checked first."""
    run.verify()
    if spec.method == "lora_plus":
        base = AutoModelForCausalLM.from_pretrained(model_path(spec.base), dtype=torch.float32)
        return load_adapter(base, run.path / "adapter").eval()
    return AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32).eval()
