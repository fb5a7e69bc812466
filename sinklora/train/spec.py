"""TrainSpec: everything that decides the outcome of a training run, and what a run is known by."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinklora.attention.pattern import KINDS, Pattern
from sinklora.pretrained.catalogue import packaged_model
from sinklora.records.checks import Count, Share, read_fields
from sinklora.records.files import file_hash
from sinklora.train.pattern_schedules import find_schedule
from sinklora.train.settings import TrainingSettings
from sinklora.train.sources import CorpusSpec

if TYPE_CHECKING:  # which would bring transformers
    from sinklora.train.tokens import TokenizedCorpus

# Fields that had another name when the first runs were made: runs are known by the old one.
KEYS = {"lr_schedule": "schedule"}


@dataclass(frozen=True)
class TrainSpec(TrainingSettings):
    """Everything that decides the outcome of a training run on a corpus, every token of which is a label.

    `random_weights`: nothing of the base but its shape. `separate_documents`: attention stays inside each.
    `recall_share`: of the rows, those made of retrieval documents. The rest: `TrainingSettings`.
    """

    corpus: CorpusSpec = field(default_factory=CorpusSpec)
    random_weights: bool = False
    steps: Count = 60
    separate_documents: bool = False
    recall_share: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_weights and self.method != "full":
            raise ValueError(
                "random_weights=True: needs method='full' (an adapter on random weights learns nothing)"
            )

    @property
    def counts_labels(self) -> bool:
        """The first token of a separate document is none."""
        return self.separate_documents

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainSpec":
        """A spec from JSON or YAML values, as `read_fields` takes them."""
        return read_fields(cls, values)

    def attention_pattern(self, step: int = 0) -> Pattern:
        """The attention pattern at a step (see `pattern_at`)."""
        return self.pattern_at(step, self.steps)


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
    suffixes = {".json", ".jinja", ".safetensors", ".model"}
    if not any(folder.glob("*.safetensors")):  # which are what is loaded where there are both
        suffixes.add(".bin")
    names = sorted(p for p in folder.iterdir() if p.suffix in suffixes)
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
    # Steps were once means of rows, which depended on how many were held at once.
    counted = {"step": "mean over labels"} if spec.counts_labels else {}
    return _with_former_names({**fields, **half, **stages, **hashes, **counted})


def _with_former_names(values: dict[str, Any]) -> dict[str, Any]:
    """Patterns by the field names that they had when the first runs were made, so that those stay found."""
    stages = []
    for stage in values.get("curriculum", []):
        former = {now: before for before, now in KINDS[stage["pattern"]["kind"]].former_names.items()}
        stages.append(stage | {"pattern": {former.get(k, k): v for k, v in stage["pattern"].items()}})
    name = values["pattern"].replace("shifted_fraction=", "shifted=")
    return values | {"pattern": name} | ({"curriculum": stages} if stages else {})
