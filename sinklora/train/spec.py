"""TrainSpec: everything that decides the outcome of a training run, and what a run is known by."""

import dataclasses
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from sinklora.attention.pattern import KINDS, Pattern
from sinklora.attention.patterns import find_pattern
from sinklora.pretrained.catalogue import packaged_model
from sinklora.records.checks import Count, NotNegative, Positive, Share, check_fields, one_of, read_fields
from sinklora.records.files import file_hash
from sinklora.train.pattern_schedules import find_schedule
from sinklora.train.sources import CorpusSpec

if TYPE_CHECKING:  # which would bring transformers
    from sinklora.train.tokens import TokenizedCorpus

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

# Fields that had another name when the first runs were made: runs are known by the old one.
KEYS = {"lr_schedule": "schedule"}


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides the outcome of a training run.

    `base`: a folder, a packaged model or a name on the hub.
    `context` and `loss_chunk` in tokens, `batch_size` in rows of `context` tokens a step over all devices,
    `micro_batch_size` in rows a device holds at once. `context` beyond the base's own extends it by `rope`.
    `pattern`: a pattern's name (see `find_pattern`) or a pattern schedule's. `lr_schedule`: how the learning
    rate goes after `warmup_steps` (one of LR_SCHEDULES). `base_dtype`: what the frozen base is held and
    computed in; "auto" is bfloat16 for LoRA+ with `bf16` on a packaged model, else float32 (`frozen_dtype`).
    `sequence_parallel`: how many processes of torchrun hold a row together, each an equal part of its tokens;
    the numbers are those of one process, so that runs are not known by it.
    Raises TypeError or ValueError naming the field.
    """

    base: str = "data/base"
    corpus: CorpusSpec = field(default_factory=CorpusSpec)
    context: Count = 2048
    pattern: str = "sf"
    group_size: int | float | None = None
    rope: str = "linear"
    method: Annotated[str, one_of(METHODS)] = "lora_plus"
    random_weights: bool = False
    rank: Count = 8
    alpha: Count = 16
    steps: Count = 60
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
    separate_documents: bool = False
    recall_share: Share = 0.0
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
        if self.random_weights and self.method != "full":
            raise ValueError(
                "random_weights=True: needs method='full' (an adapter on random weights learns nothing)"
            )
        if self.base_dtype == "bfloat16" and (self.method != "lora_plus" or not self.bf16):
            raise ValueError(
                "base_dtype='bfloat16': needs method='lora_plus' and bf16=True (what is trained is float32), "
                f"got method={self.method!r}, bf16={self.bf16}"
            )
        if self.sequence_parallel > 1:
            self._check_sequence_parallel()
        self.attention_pattern()  # names a pattern that there is not, or a group size that it cannot have

    def _check_sequence_parallel(self) -> None:
        what = f"sequence_parallel={self.sequence_parallel}"
        if self.compile:
            raise ValueError(f"{what}: not together with compile=True, whose graphs hold no exchange")
        schedule = find_schedule(self.pattern)
        patterns = [p for _, p in schedule.stages] if schedule else [self.attention_pattern()]
        if any(pattern.windows() is None for pattern in patterns):
            raise ValueError(
                f"{what}: rows are cut for patterns of windows alone, got pattern={self.pattern!r}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainSpec":
        """A spec from JSON or YAML values, as `read_fields` takes them."""
        return read_fields(cls, values)

    @property
    def frozen_dtype(self) -> str:
        """The dtype of the base model: "float32" or "bfloat16"."""
        if self.base_dtype != "auto":
            return self.base_dtype
        half = self.bf16 and self.method == "lora_plus" and packaged_model(self.base) is not None
        return "bfloat16" if half else "float32"

    def attention_pattern(self, step: int = 0) -> Pattern:
        """The attention pattern at a step, with the spec's own group size where it gives one.

        Full attention, pattern schedules, and a name that gives a group size keep theirs.
        """
        schedule = find_schedule(self.pattern)
        if schedule is not None:
            return schedule.pattern_at(step, self.steps)
        pattern = find_pattern(self.pattern)
        if self.group_size is None or self.pattern == "full" or "group_size" in self.pattern:
            return pattern
        return dataclasses.replace(pattern, group_size=self.group_size)


def base_hash(base: str) -> str:
    """SHA-256 over a local base model's files, or of the weights of a packaged model; a hub name stands for
    itself.
    """
    packaged = packaged_model(base)
    if packaged is not None:
        return packaged.sha256
    folder = Path(base)
    if not folder.is_dir():
        return base
    names = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".model"})
    if not names:
        raise FileNotFoundError(f"base={base!r}: the folder holds no model")
    return hashlib.sha256("".join(f"{p.name} {file_hash(p)}\n" for p in names).encode()).hexdigest()


def identity(spec: TrainSpec, corpus: "TokenizedCorpus") -> dict[str, Any]:
    """What a run directory is keyed by: the spec and the hashes of what it is fed."""
    schedule = find_schedule(spec.pattern)
    stages = {} if schedule is None else {"curriculum": schedule.to_list()}
    fields = {KEYS.get(name, name): value for name, value in asdict(spec).items()}
    del fields["sequence_parallel"]  # how a run is trained, and not what
    del fields["base_dtype"]  # the first runs had float32 alone, and are known without it
    half = {"frozen_dtype": spec.frozen_dtype} if spec.frozen_dtype != "float32" else {}
    hashes = {"base_sha256": base_hash(spec.base), "data_sha256": corpus.sha256}
    return _with_former_names({**fields, **half, **stages, **hashes})


def _with_former_names(values: dict[str, Any]) -> dict[str, Any]:
    """Patterns by the field names that they had when the first runs were made, so that those stay found."""
    stages = []
    for stage in values.get("curriculum", []):
        former = {now: before for before, now in KINDS[stage["pattern"]["kind"]].former_names.items()}
        stages.append(stage | {"pattern": {former.get(k, k): v for k, v in stage["pattern"].items()}})
    name = values["pattern"].replace("shifted_fraction=", "shifted=")
    return values | {"pattern": name} | ({"curriculum": stages} if stages else {})
