"""TrainingSettings: how a model is trained, whatever it is trained on."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import find_pattern
from sinklora.attention.sequence_parallel.plan import windows_to_cut
from sinklora.pretrained.catalogue import packaged_model
from sinklora.records.checks import Count, NotNegative, Positive, Share, check_fields, one_of
from sinklora.train.pattern_schedules import find_schedule

METHODS = ("lora_plus", "full")

BASE_DTYPES = ("auto", "float32", "bfloat16")

# Of the Trainer's, those that need no further arguments.
LR_SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)


@dataclass(frozen=True)
class TrainingSettings:
    """What every training run says of itself, whatever its data; specs of runs derive from it.

    `base`: a folder, a packaged model or a name on the hub.
    `context` and `loss_chunk` in tokens, `batch_size` in rows of at most `context` tokens a step over all
    devices, `micro_batch_size` in rows a device holds at once. `context` beyond the base's own extends it by
    `rope`. `pattern`: a pattern's name (see `find_pattern`) or a pattern schedule's. `lr_schedule`: how the
    learning rate goes after `warmup_steps` (one of LR_SCHEDULES, of which "constant" has none). `base_dtype`:
    what the frozen base is held and computed in; "auto" is bfloat16 for LoRA+ with `bf16` on a packaged
    model, else float32 (`frozen_dtype`). `sequence_parallel`: how many processes of torchrun hold a row
    together, each an equal part of its tokens; the numbers are those of one process, so that runs are not
    known by it.
    Raises TypeError or ValueError naming the field.
    """

    base: str = "data/base"
    context: Count = 2048
    pattern: str = "sf"
    group_size: int | float | None = None
    rope: str = "linear"
    method: Annotated[str, one_of(METHODS)] = "lora_plus"
    rank: Count = 8
    alpha: Count = 16
    batch_size: Count = 4
    micro_batch_size: Count = 4
    learning_rate: Positive = 2e-5
    warmup_steps: NotNegative = 20
    lr_schedule: Annotated[str, one_of(LR_SCHEDULES)] = "constant_with_warmup"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta2: Share = 0.95
    seed: NotNegative = 0
    bf16: bool = True
    base_dtype: Annotated[str, one_of(BASE_DTYPES)] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    loss_chunk: Count = 2048
    save_every: Count = 512
    deepspeed: str | None = None
    sequence_parallel: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size}: "
                f"expected a divisor of batch_size={self.batch_size}"
            )
        if self.lr_schedule == "constant" and self.warmup_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: lr_schedule='constant' has none; write 0, or take "
                "lr_schedule='constant_with_warmup'"
            )
        if self.base_dtype == "bfloat16" and (self.method != "lora_plus" or not self.bf16):
            raise ValueError(
                "base_dtype='bfloat16': needs method='lora_plus' and bf16=True (what is trained is float32), "
                f"got method={self.method!r}, bf16={self.bf16}"
            )
        if self.sequence_parallel > 1:
            self._check_sequence_parallel()
        self.pattern_at(0, 1)  # names a pattern that there is not, or a group size that it cannot have

    def _check_sequence_parallel(self) -> None:
        what = f"sequence_parallel={self.sequence_parallel}"
        if self.compile:
            raise ValueError(f"{what}: not together with compile=True, whose graphs hold no exchange")
        schedule = find_schedule(self.pattern)
        for pattern in [p for _, p in schedule.stages] if schedule else [self.pattern_at(0, 1)]:
            try:
                windows_to_cut(pattern)
            except ValueError as error:
                raise ValueError(f"{what}: pattern={self.pattern!r}: {error}") from error

    @property
    def counts_labels(self) -> bool:
        """Whether rows have unequal numbers of labels: a step's loss is the mean over all of its labels."""
        return False

    @property
    def frozen_dtype(self) -> str:
        """The dtype of the base model: "float32" or "bfloat16"."""
        if self.base_dtype != "auto":
            return self.base_dtype
        half = self.bf16 and self.method == "lora_plus" and packaged_model(self.base) is not None
        return "bfloat16" if half else "float32"

    def pattern_at(self, step: int, steps: int) -> Pattern:
        """The attention pattern at a step of a run of so many, with the spec's own group size where it gives
        one.

        Full attention, pattern schedules, and a name that gives a group size keep theirs.
        """
        schedule = find_schedule(self.pattern)
        if schedule is not None:
            return schedule.pattern_at(step, steps)
        pattern = find_pattern(self.pattern)
        if self.group_size is None or self.pattern == "full" or "group_size" in self.pattern:
            return pattern
        return dataclasses.replace(pattern, group_size=self.group_size)
