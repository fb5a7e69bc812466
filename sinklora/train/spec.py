"""TrainSpec: everything that decides the outcome of a training run, and what a run is known by."""

import dataclasses
import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sinklora.attention.pattern import KINDS, Pattern
from sinklora.attention.patterns import find_pattern
from sinklora.records.files import file_hash
from sinklora.train.pattern_schedules import find_schedule
from sinklora.train.sources import CorpusSpec
from sinklora.train.tokens import TokenizedCorpus

METHODS = ("lora_plus", "full")


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
        find_schedule(self.pattern)

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
        curriculum = find_schedule(self.pattern)
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
    curriculum = find_schedule(spec.pattern)
    named = {} if curriculum is None else {"curriculum": curriculum.to_list()}
    hashes = {"base_sha256": base_hash(spec.base), "data_sha256": corpus.sha256}
    return _with_former_names({**asdict(spec), **named, **hashes})


def _with_former_names(values: dict[str, Any]) -> dict[str, Any]:
    """Patterns by the field names that they had when the first runs were made, so that those stay found."""
    stages = []
    for stage in values.get("curriculum", []):
        former = {now: before for before, now in KINDS[stage["pattern"]["kind"]].former_names.items()}
        stages.append(stage | {"pattern": {former.get(k, k): v for k, v in stage["pattern"].items()}})
    name = values["pattern"].replace("shifted_fraction=", "shifted=")
    return values | {"pattern": name} | ({"curriculum": stages} if stages else {})
