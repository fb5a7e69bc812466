"""Which models the ablations need: one base and one test set, methods and training conditions vary."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoConfig

from sinklora.attention.patterns import PATTERNS, find_pattern
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, Distinct, check_fields
from sinklora.reproduction.extension.study import ExtensionStudy, measure
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec


def attention_costs(training: TrainSpec, methods: Iterable[str]) -> dict[str, float]:
    """Query-key pairs over causal pairs, mean over the steps of a training with each method: 1 is full."""
    heads = AutoConfig.from_pretrained(model_path(training.base)).num_attention_heads
    costs = {}
    for method in methods:
        spec = dataclasses.replace(training, pattern=method)
        used = Counter(spec.attention_pattern(step) for step in range(spec.steps))
        pairs = sum(pattern.density(heads, spec.context) * count for pattern, count in used.items())
        costs[method] = pairs / spec.steps
    return costs


@dataclass(frozen=True)
class AblationStudy:
    """`training` gives what is not varied; tested on one test set at the original and the trained context.

    Lengths in tokens. Raises ValueError for what training or testing would refuse later.
    """

    training: TrainSpec
    seeds: Distinct[int]
    test_set: CorpusSpec
    original_context: Count
    stride: Count
    documents: Count
    document_tokens: Count

    def __post_init__(self) -> None:
        check_fields(self)

    def extension(self, methods: Iterable[str], **condition: Any) -> ExtensionStudy:
        """The study of some methods; `condition`: fields of TrainSpec in place of `training`'s."""
        training = dataclasses.replace(self.training, **condition)
        return ExtensionStudy(
            training=training,
            patterns=tuple(dict.fromkeys(["full", *methods])),
            seeds=self.seeds,
            test_sets={"Table 1": self.test_set},
            contexts=(self.original_context, training.context),
            stride=self.stride,
            documents=self.documents,
            document_tokens=self.document_tokens,
        )

    def measure(self, methods: Iterable[str], *, runs: Path, **condition: Any) -> pd.DataFrame:
        """Train and test what is missing: the rows of `extension.measure`, full attention among them."""
        return measure(self.extension(methods, **condition), runs=runs)

    def costs(self, methods: Iterable[str], **condition: Any) -> dict[str, float]:
        """`attention_costs` of each method trained under a condition, given as in `extension`."""
        return attention_costs(self.extension(methods, **condition).training, methods)


def sweep_methods(field: str, values: Sequence[float]) -> dict[float, str]:
    """Value of a field -> name of SF-Attn with it: "sf", another pattern's name, or "sf(field=value)".

    Raises ValueError or TypeError for a field or value that no pattern has.
    """
    names = {}
    for value in values:
        wanted = find_pattern(f"sf({field}={value})")
        known = [name for name, pattern in PATTERNS.items() if pattern == wanted]
        names[value] = known[0] if known else f"sf({field}={value})"
    return names
