"""InstructionSpec: all that decides the outcome of instruction tuning, and what such a run is known by."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from sinklora.records.checks import Positive, one_of, read_fields
from sinklora.train.chat_templates import TEMPLATE_NAMES
from sinklora.train.examples import ExampleSource
from sinklora.train.pattern_schedules import find_schedule
from sinklora.train.settings import TrainingSettings
from sinklora.train.spec import base_hash

LONG_EXAMPLES = ("error", "truncate-middle", "drop")

QUANTIZATIONS = ("4bit",)


@dataclass(frozen=True)
class InstructionSpec(TrainingSettings):
    """Everything that decides the outcome of a run on instructions, where answers alone are labels.

    `template`: a chat template by name, None for the tokenizer's own. `long_examples`: what becomes of one of
    more than `context` tokens. `pack`: several examples a row, else one. A step's loss is the mean over the
    answer tokens of its `batch_size` rows. `quantize`: the base held in 4 bits (QLoRA). The rest:
    `TrainingSettings`. Raises TypeError or ValueError naming the field.
    """

    examples: ExampleSource = field(kw_only=True)
    template: Annotated[str, one_of(TEMPLATE_NAMES)] | None = None
    long_examples: Annotated[str, one_of(LONG_EXAMPLES)] = "error"
    pack: bool = True
    epochs: Positive = 3.0
    quantize: Annotated[str, one_of(QUANTIZATIONS)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.pattern_at(0, 1).whole_rows_only
        if whole and (self.pack or self.micro_batch_size > 1):
            raise ValueError(
                f"pattern={self.pattern!r}: takes neither packed examples nor padding; it needs pack=False "
                "and micro_batch_size=1"
            )
        if self.sequence_parallel > 1:
            raise ValueError(
                f"sequence_parallel={self.sequence_parallel}: rows of examples have unequal lengths and are "
                "not cut; leave it out"
            )
        if self.quantize and (self.method != "lora_plus" or not self.bf16 or self.base_dtype == "float32"):
            raise ValueError(
                f"quantize={self.quantize!r}: needs method='lora_plus', bf16=True and no base_dtype of "
                f"'float32', got {self.method!r}, {self.bf16}, {self.base_dtype!r}"
            )

    @property
    def counts_labels(self) -> bool:
        """Answers are of any length."""
        return True

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "InstructionSpec":
        """A spec from JSON or YAML values, as `read_fields` takes them."""
        return read_fields(cls, values)

    @property
    def frozen_dtype(self) -> str:
        """The dtype that the base model computes in: "float32" or "bfloat16"."""
        return "bfloat16" if self.quantize else super().frozen_dtype


def instruction_identity(spec: InstructionSpec, template: str, data_sha256: str) -> dict[str, Any]:
    """What a run directory is keyed by: the spec, what its template writes, and hashes of what it is fed."""
    schedule = find_schedule(spec.pattern)
    settings = asdict(spec)
    del settings["sequence_parallel"]  # how a run is trained, and not what
    return {
        **settings,
        "frozen_dtype": spec.frozen_dtype,
        "schedule": None if schedule is None else schedule.to_list(),
        "written_template": template,
        "base_sha256": base_hash(spec.base),
        "data_sha256": data_sha256,
    }
