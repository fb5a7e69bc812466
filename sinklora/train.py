"""Training: a TrainSpec becomes a run directory with the model or adapter, its loss curve and its provenance.

``python -m sinklora.train --config FILE`` trains one spec, also under ``torchrun`` and with DeepSpeed.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from sinklora.adapters import load_adapter, save_adapter
from sinklora.curricula import find_curriculum
from sinklora.data import CorpusSpec, PackedRows, TokenizedCorpus, corpus_record, tokenize_corpus
from sinklora.files import atomic_write, file_hash
from sinklora.lora import check_gradients, lora_plus
from sinklora.loss import ChunkedLoss
from sinklora.models import current_pattern, extend_context, use_pattern
from sinklora.patterns import Pattern, find_pattern
from sinklora.provenance import provenance
from sinklora.recall import MixedRows, RecallRows
from sinklora.runs import RunDirectory

METHODS = ("lora_plus", "full")
COMPLETE = "complete.json"  # written last into a checkpoint: without it the checkpoint was cut short


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides the outcome of a training run.

    ``context`` and ``loss_chunk`` in tokens, ``batch_size`` in rows of ``context`` tokens a step over all
    devices, ``micro_batch_size`` in rows a device holds at once. ``context`` beyond the base's own extends
    it by ``rope``. ``pattern``: a pattern's name (see `find_pattern`) or a curriculum's.
    """

    base: str = "data/base"
    corpus: CorpusSpec = field(default_factory=CorpusSpec)
    context: int = 2048
    pattern: str = "sf"
    group_size: int | float | None = None
    rope: str = "linear"
    method: str = "lora_plus"
    random_weights: bool = False
    rank: int = 8
    alpha: int = 16
    steps: int = 60
    batch_size: int = 4
    micro_batch_size: int = 4
    learning_rate: float = 2e-5
    warmup_steps: int = 20
    schedule: str = "constant_with_warmup"
    weight_decay: float = 0.0
    beta2: float = 0.95
    seed: int = 0
    bf16: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    loss_chunk: int = 2048
    separate_documents: bool = False
    recall_share: float = 0.0
    save_every: int = 512
    deepspeed: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: expected one of {METHODS}")
        for name in (
            "context",
            "steps",
            "batch_size",
            "micro_batch_size",
            "rank",
            "loss_chunk",
            "save_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size}: "
                f"expected a divisor of batch_size={self.batch_size}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: expected a positive number")
        if not 0 <= self.recall_share < 1:
            raise ValueError(f"recall_share={self.recall_share}: expected 0 <= recall_share < 1")
        if self.random_weights and self.method != "full":
            raise ValueError(
                "random_weights=True: needs method='full' (an adapter on random weights learns nothing)"
            )
        find_curriculum(self.pattern)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainSpec":
        """A spec from JSON or YAML values; unknown keys raise ValueError."""
        values = dict(values)
        corpus = values.pop("corpus", {})
        for kind, given in ((cls, values), (CorpusSpec, corpus)):
            unknown = set(given) - {f.name for f in dataclasses.fields(kind)}
            if unknown:
                raise ValueError(f"{kind.__name__}: unknown keys {sorted(unknown)}; check the spelling")
        return cls(corpus=CorpusSpec(**corpus), **values)

    def attention_pattern(self, step: int = 0) -> Pattern:
        """The attention pattern at a step, with the spec's own group size where it gives one.

        Full attention, curricula, and a name that gives a group size keep theirs.
        """
        curriculum = find_curriculum(self.pattern)
        if curriculum is not None:
            return curriculum.pattern_at(step, self.steps)
        pattern = find_pattern(self.pattern)
        if self.group_size is None or self.pattern == "full" or "group_size" in self.pattern:
            return pattern
        return dataclasses.replace(pattern, group_size=self.group_size)


def base_hash(base: str) -> str:
    """SHA-256 over a local base model's files; a hub name stands for itself."""
    folder = Path(base)
    if not folder.is_dir():
        return base
    names = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".model"})
    if not names:
        raise FileNotFoundError(f"base={base!r}: the folder holds no model")
    return hashlib.sha256("".join(f"{p.name} {file_hash(p)}\n" for p in names).encode()).hexdigest()


def identity(spec: TrainSpec, corpus: TokenizedCorpus) -> dict[str, Any]:
    """What a run directory is keyed by: the spec and the hashes of what it is fed."""
    curriculum = find_curriculum(spec.pattern)
    named = {} if curriculum is None else {"curriculum": curriculum.to_list()}
    return {**asdict(spec), **named, "base_sha256": base_hash(spec.base), "data_sha256": corpus.sha256}


def load_base(spec: TrainSpec) -> PreTrainedModel:
    """The base model in float32, extended to the context; random weights where the spec says so."""
    if spec.random_weights:
        set_seed(spec.seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(spec.base), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(spec.base, dtype=torch.float32)
    if spec.context > model.config.max_position_embeddings:
        model = extend_context(model, spec.context, method=spec.rope)
    return model


def trainable_model(spec: TrainSpec) -> torch.nn.Module:
    """The base with the pattern in training mode, and the adapter where the method is one."""
    model = load_base(spec)
    if spec.pattern != "full":
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
    return MixedRows(rows, RecallRows(tokenizer, spec.context, len(rows), spec.seed), spec.recall_share)


class ChunkedLossTrainer(Trainer):
    """Trainer whose loss never holds a [tokens, vocabulary] tensor."""

    def __init__(self, *arguments: Any, loss_chunk: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.model_accepts_loss_kwargs = False  # rows are equally long: the mean of means is the mean
        self.chunked_loss = ChunkedLoss(loss_chunk)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        with self.accelerator.autocast():  # the head is applied outside of the model's own forward
            loss = self.chunked_loss(model, **inputs)
        return (loss, {"loss": loss}) if return_outputs else loss


class MarkComplete(TrainerCallback):
    """Writes the hashes of a checkpoint's files last, so that a torn one is never resumed."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **unused: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            hashes = {p.relative_to(folder).as_posix(): file_hash(p) for p in _files(folder)}
            atomic_write(folder / COMPLETE, json.dumps(hashes))


class CheckGradients(TrainerCallback):
    """Stops a run at its first step if a tensor that should be trained gets no gradient.

    Checkpointing can cut it off.
    """

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **given: Any) -> None:
        if (
            state.global_step == 0 and args.deepspeed is None
        ):  # DeepSpeed holds gradients in its own partitions
            check_gradients(given["model"])


class FollowCurriculum(TrainerCallback):
    """Changes the pattern between steps where the spec's curriculum does, after a resumption as well."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **given: Any) -> None:
        model = getattr(given["model"], "module", given["model"])  # what distributed training wraps
        pattern = self.spec.attention_pattern(state.global_step)
        if current_pattern(model) != pattern:
            use_pattern(model, pattern, probe=False)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files match their recorded hashes; torn ones before it are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        try:
            recorded = json.loads((checkpoint / COMPLETE).read_text())
            if all(file_hash(checkpoint / name) == digest for name, digest in recorded.items()):
                return checkpoint
        except (OSError, json.JSONDecodeError):
            pass
        shutil.rmtree(checkpoint, ignore_errors=True)  # another rank may do the same
    return None


def training_arguments(spec: TrainSpec, folder: Path, progress: bool) -> TrainingArguments:
    """The spec in the Trainer's words."""
    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's number of processes
    accumulation, rest = divmod(spec.batch_size, spec.micro_batch_size * world)
    if rest or not accumulation:
        raise ValueError(
            f"batch_size={spec.batch_size}: expected a multiple of micro_batch_size × devices = "
            f"{spec.micro_batch_size} × {world}"
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.steps,
        per_device_train_batch_size=spec.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        adam_beta2=spec.beta2,
        seed=spec.seed,
        bf16=spec.bf16,
        use_cpu=not cuda,
        gradient_checkpointing=spec.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        torch_compile=spec.compile,
        save_steps=spec.save_every,
        save_total_limit=2,
        logging_steps=1,
        disable_tqdm=not progress,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        ddp_backend="gloo" if world > 1 and not cuda else None,
        deepspeed=spec.deepspeed,
    )


def train(
    spec: TrainSpec, *, runs: Path = Path("runs"), cache: Path | None = None, progress: bool = True
) -> RunDirectory:
    """Train a spec, or reuse its finished run, or go on from its last complete checkpoint.

    Returns the run directory: ``adapter/`` or ``model/``, ``loss.csv`` (step, loss, learning_rate,
    grad_norm), ``spec.json``, ``provenance.json``. Raises DamagedRunError if a finished run no longer
    matches its record.
    """
    _check_deepspeed(spec.deepspeed)
    tokenizer = AutoTokenizer.from_pretrained(spec.base)
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
    follow = [FollowCurriculum(spec)] if find_curriculum(spec.pattern) else []
    trainer = ChunkedLossTrainer(
        model=trainable_model(spec),
        args=training_arguments(spec, work, progress),
        train_dataset=training_rows(spec, corpus, tokenizer),
        callbacks=[MarkComplete(), CheckGradients(), *follow],
        loss_chunk=spec.loss_chunk,
    )
    checkpoint = last_complete_checkpoint(work) if work.is_dir() else None
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    model = trainer.accelerator.unwrap_model(trainer.model)
    with gathered(model):  # by all processes together
        saved = _save(spec, model, run.path) if trainer.is_world_process_zero() else []
    if not saved:
        return
    curve = pd.DataFrame(row for row in trainer.state.log_history if "loss" in row)
    atomic_write(run.path / "loss.csv", curve.to_csv(index=False))
    record = {
        **provenance(),
        "data": corpus_record(spec.corpus, corpus),
        "seconds": result.metrics["train_runtime"],
    }
    atomic_write(run.path / "provenance.json", json.dumps(record, indent=1))
    run.finish([*saved, run.path / "loss.csv", run.path / "provenance.json"])
    shutil.rmtree(work)


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Trained parameters as a whole on every process where ZeRO-3 has divided them; else nothing happens."""
    divided = [p for p in model.parameters() if p.requires_grad and hasattr(p, "ds_id")]
    if not divided:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(divided):
        yield


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
    return _files(final)


def load_trained(run: RunDirectory, spec: TrainSpec) -> torch.nn.Module:
    """The model of a finished run, in evaluation mode; its files are checked first."""
    run.verify()
    if spec.method == "lora_plus":
        base = AutoModelForCausalLM.from_pretrained(spec.base, dtype=torch.float32)
        return load_adapter(base, run.path / "adapter").eval()
    return AutoModelForCausalLM.from_pretrained(run.path / "model", dtype=torch.float32).eval()


def main(
    config: Annotated[Path, typer.Option(help="YAML file with the fields of TrainSpec")],
    runs: Annotated[Path, typer.Option(help="where run directories lie")] = Path("runs"),
) -> None:
    """Train one spec; a killed run goes on from its last checkpoint."""
    run = train(TrainSpec.from_dict(yaml.safe_load(config.read_text())), runs=runs)
    typer.echo(run.path)


if __name__ == "__main__":
    typer.run(main)
