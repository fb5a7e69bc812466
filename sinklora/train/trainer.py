"""How the Trainer trains here: chunked loss, checkpoints that cannot be torn, patterns that change between
steps, ZeRO-3's divided parameters gathered.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import Trainer, TrainerCallback, TrainingArguments

from sinklora.hf.models import current_pattern, use_pattern
from sinklora.lora.adapter import check_gradients
from sinklora.records.files import are_unchanged, atomic_write, file_hash
from sinklora.train.checkpointing import keep_products
from sinklora.train.loss import ChunkedLoss
from sinklora.train.settings import TrainingSettings
from sinklora.train.sharded_rows import SequenceGroups, accumulated_batches, cut_rows, process_count
from sinklora.train.whole_rounds import WholeRounds

COMPLETE = "complete.json"  # written last into a checkpoint: without it the checkpoint was cut short


class ChunkedLossTrainer(Trainer):
    """Trainer whose loss never holds a [tokens, vocabulary] tensor.

    A base in bfloat16 is trained by the shorter way: the fused loss, no casts to float32 on the way into
    LoRA, and on the CPU checkpoints that keep products.
    """

    def __init__(self, *arguments: Any, spec: TrainingSettings, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Equally many labels a row: the mean of means is the mean. Else a step's labels are counted first.
        self.model_accepts_loss_kwargs = spec.counts_labels
        self.groups = SequenceGroups.of(spec.sequence_parallel)
        self.rounds: WholeRounds | None = None  # of several processes
        self.half = spec.frozen_dtype == "bfloat16"
        self.chunked_loss = ChunkedLoss(spec.loss_chunk, fused=self.half)
        if keeps_products(spec):
            model: Any = self.model
            keep_products(model)

    def get_train_dataloader(self) -> Any:
        loader: Any = super().get_train_dataloader()
        if self.args.world_size > 1:  # the processes of a group take the same rows
            share = loader.batch_sampler
            share.num_processes, share.process_index = self.groups.rows, self.groups.place
            self.rounds = share.batch_sampler = WholeRounds(share.batch_sampler, self.groups.rows)
        return loader

    def training_step(self, model: torch.nn.Module, *arguments: Any, **options: Any) -> torch.Tensor:
        # Autocast casts what needs it; peft would go by way of float32. Checkpoints compute in the backward
        # pass, which is part of this step.
        with disable_input_dtype_casting(model) if self.half else nullcontext():
            loss: torch.Tensor = super().training_step(model, *arguments, **options)
            return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        with self.accelerator.autocast():  # the head is applied outside of the model's own forward
            if self.groups.size == 1:
                loss = self.chunked_loss(model, counted=num_items_in_batch, **inputs)
            else:  # gradients become the mean over processes, of which each has a summand
                rows = cut_rows(self.groups.group, **inputs)
                loss = self.chunked_loss.of_shard(model, rows, num_items_in_batch) * self.groups.size
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which are averaged over, and share one count
        elif self.rounds is not None:
            loss = loss * self.rounds.correction(
                self.state.global_step, self.args.gradient_accumulation_steps
            )
        return (loss, {"loss": loss}) if return_outputs else loss


class MarkComplete(TrainerCallback):
    """Writes the hashes of a checkpoint's files last, so that a torn one is never resumed."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **unused: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes files of its own
        if state.is_world_process_zero:
            folder = saved_checkpoint(args, state)
            hashes = {p.relative_to(folder).as_posix(): file_hash(p) for p in files_below(folder)}
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


class FollowPatternSchedule(TrainerCallback):
    """Changes the pattern between steps as the pattern schedule says, after a resumption as well."""

    def __init__(self, spec: TrainingSettings) -> None:
        self.spec = spec

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **given: Any) -> None:
        model = getattr(given["model"], "module", given["model"])  # what distributed training wraps
        pattern = self.spec.pattern_at(state.global_step, state.max_steps)
        if current_pattern(model) != pattern:
            use_pattern(model, pattern, probe=False)


def saved_checkpoint(args: TrainingArguments, state: Any) -> Path:
    """The folder of the checkpoint that was saved last."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def files_below(folder: Path) -> list[Path]:
    """All files of a folder but the mark of a complete checkpoint, in order."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != COMPLETE)


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files match their recorded hashes; torn ones before it are removed."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.rpartition("-")[2])):
        if are_unchanged(checkpoint, COMPLETE):
            return checkpoint
        shutil.rmtree(checkpoint, ignore_errors=True)  # another rank may do the same
    return None


def keeps_products(spec: TrainingSettings) -> bool:
    """Whether checkpoints keep products: memory for time, which the CPU has more of than a GPU."""
    half = spec.frozen_dtype == "bfloat16"
    return spec.gradient_checkpointing and half and not torch.cuda.is_available()


def training_arguments(spec: TrainingSettings, steps: int, folder: Path, progress: bool) -> TrainingArguments:
    """The spec in the Trainer's words."""
    cuda = torch.cuda.is_available()
    world = process_count()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=spec.micro_batch_size,
        gradient_accumulation_steps=accumulated_batches(spec, world),
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.lr_schedule,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        adam_beta2=spec.beta2,
        seed=spec.seed,
        bf16=spec.bf16,
        use_cpu=not cuda,
        gradient_checkpointing=spec.gradient_checkpointing and not keeps_products(spec),
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
        logging_nan_inf_filter=False,  # which would log a diverged loss as 0
    )
    if arguments.n_gpu > 1:  # one process that sees several cards would lay batch_size rows on each
        arguments._n_gpu = 1
    return arguments


def know_each_other() -> None:
    """Tell DeepSpeed of the processes that the Trainer's arguments have joined, among which ZeRO-3 divides
    weights as they are read.
    """
    import deepspeed

    if torch.distributed.is_initialized():
        deepspeed.init_distributed(verbose=False)


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
