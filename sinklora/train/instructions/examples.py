"""What instruction data are made of: an example, where it comes from, and the mix of LongAlpaca-plus."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from sinklora.records.checks import check_counts, check_fields

NATURAL_QUESTIONS, REDPAJAMA, BOOKSUM, LONGQA = "nq", "redpajama", "booksum", "longqa"

# In thousandths of the examples; the paper's section on supervised fine-tuning.
MIX: Mapping[str, int] = MappingProxyType({NATURAL_QUESTIONS: 440, REDPAJAMA: 270, BOOKSUM: 180, LONGQA: 110})

QUESTION, CONTINUATION, SUMMARY, LONG_QUESTION = "question", "continuation", "summary", "long question"

KINDS: Mapping[str, str] = MappingProxyType(
    {NATURAL_QUESTIONS: QUESTION, REDPAJAMA: CONTINUATION, BOOKSUM: SUMMARY, LONGQA: LONG_QUESTION}
)
"""What is asked for by the examples of each source."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        NATURAL_QUESTIONS: "Natural Questions",
        REDPAJAMA: "RedPajama",
        BOOKSUM: "BookSum",
        LONGQA: "LongQA",
    }
)


@dataclass(frozen=True)
class Example:
    """An instruction and its answer, as Alpaca names them, and where they come from.

    `kind`: what is asked for; `source`: of which set, `id` in it; `document`: whose text the instruction
    holds, by which sets are split; `licence`: of that text; `file` and `file_sha256`: what it was
    read from (of a set of the hub its name, and "").
    Raises TypeError or ValueError naming the field.
    """

    instruction: str
    output: str
    kind: str
    source: str
    id: str
    document: str
    licence: str
    file: str = ""
    file_sha256: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("instruction", "output"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}={getattr(self, name)!r}: expected text")

    def to_dict(self) -> dict[str, Any]:
        """The columns of a data set, in their order."""
        return asdict(self)


def mixed_counts(total: int) -> dict[str, int]:
    """How many examples of each source make `total` in the paper's mix: of 28,000 the paper's own counts.

    What is left after rounding down goes to the largest remainders. Raises ValueError for a total in which a
    source would have none.
    """
    check_counts(total=total)
    counts = {name: total * share // 1000 for name, share in MIX.items()}
    by_remainder = sorted(MIX, key=lambda name: -(total * MIX[name] % 1000))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    if empty := [name for name, count in counts.items() if not count]:
        raise ValueError(f"total={total}: leaves none for {', '.join(empty)}; take 10 or more")
    return counts
