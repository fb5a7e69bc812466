"""A sample of a source: which rows are taken depends on the seed and on the rows, not on their order."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from tqdm.auto import tqdm

from sinklora.records.placed_fields import check_characters
from sinklora.train.instructions.examples import TITLES, Example
from sinklora.train.instructions.pairs import Pair, Unusable
from sinklora.train.instructions.source_rows import SourceFile
from sinklora.train.near_duplicates import SHARE, SeenText, word_runs

SPARE = 1.25  # candidates kept for each example that is wanted: near-duplicates fall out


@dataclass(frozen=True)
class SourceReader:
    """How a source is read: what its examples ask for, under which licence, and what a row of it gives."""

    name: str
    kind: str
    licence: str
    read: Callable[[Mapping[str, Any], str], Pair | Unusable]


@dataclass(frozen=True)
class Sample:
    """Examples of a source, and what became of its rows: how many were read, of how many nothing could be
    made, by reason, and how many candidates were near-duplicates.
    """

    examples: list[Example]
    rows: int
    unusable: dict[str, int]
    near_duplicates: int


@dataclass
class Repetitions:
    """What examples were taken, to know those that ask the same of the same text.

    An example is a near-duplicate where half of the words of its instruction, in runs of 13, and of its
    output were seen in those before. An output that is too short for a run has to be the same, and the
    instruction is compared with those that had this output alone: what is answered by "Yes" about one page
    says nothing of another. So a second question about a page is kept, unless its answer is the same too.
    """

    instructions: SeenText = field(default_factory=SeenText)  # of the examples whose outputs have runs
    outputs: SeenText = field(default_factory=SeenText)
    short_outputs: dict[str, SeenText] = field(default_factory=dict)  # the instructions of each

    def is_new(self, example: Example) -> bool:
        """Whether an example repeats none before; a new one counts as seen from now on."""
        output = " ".join(example.output.lower().split())
        is_short = not len(word_runs(output))
        same_output = self.short_outputs.setdefault(output, SeenText()) if is_short else self.instructions
        known = is_short or self.outputs.share(output) >= SHARE
        if known and same_output.share(example.instruction) >= SHARE:
            return False
        same_output.add(example.instruction)
        if not is_short:
            self.outputs.add(output)
        return True


def sample(
    reader: SourceReader,
    files: Sequence[SourceFile],
    count: int,
    *,
    seed: int,
    repetitions: Repetitions,
    most_rows: int | None = None,
    progress: bool = True,
) -> Sample:
    """`count` examples of a source, without near-duplicates; only the first `most_rows` rows are read.

    Candidates come in the order of the hash of seed and id. Where too many of those that are kept in memory
    are near-duplicates, the source is read again and more are kept. Raises ValueError naming the source
    where there are too few, and by how many.
    """
    capacity, looked = int(count * SPARE) + 1, 0
    taken: list[Example] = []
    while True:
        candidates = _candidates(reader, files, capacity, seed, most_rows, progress)
        for example in candidates.examples[looked:]:
            if len(taken) == count:
                break
            looked += 1
            if repetitions.is_new(example):
                taken.append(example)
        if len(taken) == count or candidates.usable <= capacity:
            break
        capacity *= 2
    duplicates = looked - len(taken)
    if len(taken) < count:
        raise ValueError(_too_few(reader.name, count, len(taken), duplicates, candidates))
    return Sample(taken, candidates.rows, dict(candidates.unusable), duplicates)


@dataclass(frozen=True)
class _Candidates:
    """The first examples by their hashes, and counts over all rows."""

    examples: list[Example]
    rows: int
    usable: int
    unusable: Counter[str]


def _candidates(
    reader: SourceReader,
    files: Sequence[SourceFile],
    capacity: int,
    seed: int,
    most_rows: int | None,
    progress: bool,
) -> _Candidates:
    kept: list[tuple[int, int, Example]] = []  # negative hash and number: the last candidate comes first
    unusable, number, usable = Counter[str](), 0, 0
    placed = islice(_rows(files), most_rows)
    for file, place, row in tqdm(placed, desc=TITLES[reader.name], unit="row", disable=not progress):
        number += 1
        pair = reader.read(row, place)
        if isinstance(pair, Unusable):
            unusable[pair.reason] += 1
            continue
        for name, text in asdict(pair).items():
            check_characters(text, name, place)
        usable += 1
        rank = (-_hash(f"{seed}/{reader.name}/{pair.id}"), -number)
        if len(kept) < capacity:
            heapq.heappush(kept, (*rank, _example(reader, pair, file)))
        elif rank > kept[0][:2]:
            heapq.heapreplace(kept, (*rank, _example(reader, pair, file)))
    in_order = sorted(kept, key=lambda one: one[:2], reverse=True)
    return _Candidates([example for *_, example in in_order], number, usable, unusable)


def _rows(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, str, dict[str, Any]]]:
    for file in files:
        for place, row in file.rows():
            yield file, place, row


def _example(reader: SourceReader, pair: Pair, file: SourceFile) -> Example:
    return Example(
        pair.instruction,
        pair.output,
        reader.kind,
        reader.name,
        pair.id,
        pair.document,
        reader.licence,
        file.name,
        file.sha256,
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _too_few(name: str, count: int, taken: int, duplicates: int, candidates: _Candidates) -> str:
    reasons = "".join(f", {number:,} {reason}" for reason, number in sorted(candidates.unusable.items()))
    return (
        f"source {name} ({TITLES[name]}): {count:,} examples are wanted and {taken:,} are there, "
        f"{count - taken:,} too few (rows read {candidates.rows:,}{reasons}, {duplicates:,} "
        "near-duplicates); give more of it, or a smaller total"
    )
