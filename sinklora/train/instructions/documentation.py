"""Documentation of installed packages as pages to ask about: docstrings file by file, and what they state.

A docstring in the form of numpydoc says of each parameter its type, its default and what it is for, so that
questions about them have answers that stand in the text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from sinklora.records.files import file_hash, visible_files
from sinklora.train.near_duplicates import SHARE, SeenText
from sinklora.train.prose import LEFT_OUT, named_docstrings
from sinklora.train.sources import package_root

NOT_STATED = "not stated"  # a licence

UNDERLINE = re.compile(r"^-{3,}$")

PARAMETER = re.compile(r"^(?P<name>[A-Za-z_]\w*) : (?P<type>\S.*)$")

DEFAULT = re.compile(r"\bdefault(?: is|:|=|) ?[:=]?\s*(?P<value>[^\s,;()]+|\([^()]*\))\.?\s*\)?$")

WRAPPED = 55  # characters from which on a line was broken because it was full

MARKS = (">>>", "...", "-", "*", "..", ":", "|", "#", "[", "(", "=")  # a line of its own begins with one

LEAST_ENTRY = 200  # characters of a docstring that says something


@dataclass(frozen=True)
class Parameter:
    """What a docstring says of a parameter; `default` and `meaning` (its first sentence) may be empty."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """The documentation of one class or function: `name` as code in its file would write it."""

    name: str
    text: str

    @property
    def summary(self) -> str:
        """Its first paragraph, which says in a sentence what it is."""
        return " ".join(self.text.partition("\n\n")[0].split())

    @property
    def without_summary(self) -> str:
        """All behind the first paragraph."""
        return self.text.partition("\n\n")[2].strip()

    def parameters(self) -> list[Parameter]:
        """What its section "Parameters" says of each, where it names one at a time."""
        return [_parameter(head, body) for head, body in _definitions(self.text, "Parameters")]

    def returned(self) -> str:
        """The first sentence of what its section "Returns" says; empty where that names no one value."""
        returned = _definitions(self.text, "Returns")
        return first_sentence(returned[0][1]) if len(returned) == 1 else ""


@dataclass(frozen=True)
class Page:
    """The documentation in a file of a package: its entries in their order."""

    name: str
    entries: tuple[Entry, ...]
    package: str
    file_sha256: str

    @property
    def characters(self) -> int:
        """Of all entries together."""
        return sum(len(entry.text) for entry in self.entries)


def read_pages(packages: Sequence[str]) -> tuple[list[Page], int]:
    """The pages of packages in the order of their paths, and how many entries were left out because half of
    them had been said before.

    Raises ValueError for a package that is not installed.
    """
    roots = {package: package_root(package) for package in packages}
    seen, pages, repeated = SeenText(), [], 0
    for package, root in roots.items():
        for path in visible_files(root, "*.py"):
            inside = path.relative_to(root)
            if any(LEFT_OUT.search(part.split(".")[0]) for part in inside.parts):
                continue
            entries = _entries(path)
            new = [entry for entry in entries if seen.add(entry.text) < SHARE]
            repeated += len(entries) - len(new)
            if new:
                pages.append(Page(f"{package}/{inside.as_posix()}", tuple(new), package, file_hash(path)))
    return pages, repeated


def _entries(path: Path) -> list[Entry]:
    try:
        source = path.read_bytes().decode("utf-8")
    except ValueError:
        return []
    named = [(name, unwrapped(text)) for name, text in named_docstrings(source)]
    public = [Entry(name, text) for name, text in named if name and not re.search(r"(^|\.)_", name)]
    names = [entry.name for entry in public]  # a property and its setter have one name
    return [e for e in public if len(e.text) >= LEAST_ENTRY and names.count(e.name) == 1]


def unwrapped(text: str) -> str:
    """A docstring whose lines end where sentences or items do, and not because they were full."""
    lines: list[str] = []
    full = False  # whether the line before was broken because it was full
    for line in text.split("\n"):
        line = line.rstrip()
        words = line.strip()
        is_prose = not words.startswith(MARKS) and not PARAMETER.match(words) and "  " not in words
        goes_on = full and words and is_prose
        if goes_on and _indent(line) == _indent(lines[-1]):
            lines[-1] += " " + words
        else:
            lines.append(line)
        full = len(line) >= WRAPPED and not line.strip().startswith((">>>", "|"))
    return "\n".join(lines).strip()


def first_sentence(text: str) -> str:
    """The first sentence of a paragraph, without its full stop; empty where it has none."""
    sentence = re.match(r"(.+?)(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)\.(?:\s|$)", text)
    return sentence[1] if sentence else ""


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _definitions(text: str, section: str) -> list[tuple[str, str]]:
    """The heads of a section's definitions, and the first line below each."""
    lines = text.split("\n")
    starts = [i for i in range(len(lines) - 1) if lines[i] == section and UNDERLINE.match(lines[i + 1])]
    if not starts:
        return []
    pairs = []
    for i in range(starts[0] + 2, len(lines)):
        line = lines[i]
        if i + 1 < len(lines) and UNDERLINE.match(lines[i + 1]):
            break
        if line and not line.startswith(" "):
            below = lines[i + 1] if i + 1 < len(lines) else ""
            pairs.append((line, below.strip() if below.startswith(" ") else ""))
    return pairs


def _parameter(head: str, body: str) -> Parameter:
    parts = PARAMETER.match(head)
    if not parts:
        return Parameter("", "", "", "")
    default = DEFAULT.search(parts["type"])
    value = default["value"].rstrip(".") if default else ""
    return Parameter(parts["name"], parts["type"], value, first_sentence(body))


def described_package(package: str) -> str:
    """A package with its version, as installed."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def licence_of(package: str) -> str:
    """What a package says of its licence, in a few words; "not stated" where it says nothing."""
    try:
        about = metadata(package)
    except PackageNotFoundError:
        return NOT_STATED
    classified = [c for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    short = (about["License"] or "").split("\n")[0]
    licence = about["License-Expression"] or (classified[0].rpartition(":: ")[2] if classified else short)
    return str(licence) or NOT_STATED
