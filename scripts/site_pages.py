"""What the documentation site consists of, and where its links lead.

A page has the place that its text has in the repository, so that links between texts stay as they are. Texts
that a page links to are pages too; other files that it links to lie in the site beside them; a module of the
package is shown in the reference instead.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

PACKAGE = "sinklora"

FIRST_TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "results/*/pages/*.md")

LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?(?=\))")

CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)

QUOTE_MARK = re.compile(r"<!--=[^>]*-->")  # around numbers that texts quote from the results


@dataclass(frozen=True)
class SiteFiles:
    """Files of the repository, by names from its root: `texts` become pages, `others` are copied."""

    texts: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


def outside_code(text: str) -> Iterator[tuple[bool, str]]:
    """The pieces of a text in order, each with whether it is prose (and not a code block or span)."""
    end = 0
    for found in CODE.finditer(text):
        yield True, text[end : found.start()]
        yield False, found[0]
        end = found.end()
    yield True, text[end:]


def links(text: str) -> list[str]:
    """The relative links of a text's prose, without their anchors; pictures are links too."""
    prose = "".join(piece for is_prose, piece in outside_code(text) if is_prose)
    paths = [found["path"] for found in LINK.finditer(prose)]
    return [path for path in paths if path and ":" not in path]


def resolved(place: str, link: str) -> str:
    """The name from the root that `link` has on the page at `place`; ValueError for one above the root."""
    parts: list[str] = []
    for part in (PurePosixPath(place).parent / link).parts:
        if part != "..":
            parts.append(part)
        elif not parts:
            raise ValueError(f"{place}: the link {link} leads out of the repository")
        else:
            parts.pop()
    return "/".join(parts)


def site_files(root: Path, generated: Iterable[tuple[str, str]] = ()) -> SiteFiles:
    """All that belongs to the site of a checkout; `generated` are further texts, by place, that may link too.

    Raises FileNotFoundError for a link to nothing.
    """
    files = SiteFiles()
    first = [path for pattern in FIRST_TEXTS for path in sorted(root.glob(pattern))]
    waiting = [path.relative_to(root).as_posix() for path in first]
    made = dict(generated)
    for place, text in made.items():
        waiting += _linked(root, place, text, made)
    while waiting:
        name = waiting.pop()
        if name in files.texts or name in files.others:
            continue
        if not name.endswith(".md"):
            files.others.add(name)
            continue
        files.texts.add(name)
        waiting += _linked(root, name, (root / name).read_text(encoding="utf-8"), made)
    return files


def _linked(root: Path, place: str, text: str, made: Iterable[str]) -> Iterator[str]:
    for link in links(text):
        name = resolved(place, link)
        if module_place(name) or name in made:
            continue
        if not (root / name).is_file():
            raise FileNotFoundError(f"{place}: the link {link} leads to no file")
        yield name


def module_place(name: str) -> str:
    """Where the reference shows a module of the package, as a page and an anchor; "" for other files."""
    parts = PurePosixPath(name).with_suffix("").parts
    if not name.endswith(".py") or len(parts) < 3 or parts[0] != PACKAGE:
        return ""
    dotted = ".".join(part for part in parts if part != "__init__")
    return f"reference/{parts[1]}.md#{dotted}"


def as_page(place: str, text: str) -> str:
    """A text of the repository as its page shows it: no marks of quoted numbers, modules in the reference."""

    def relinked(found: re.Match[str]) -> str:
        path = found["path"]
        target = module_place(resolved(place, path)) if path and ":" not in path else ""
        return f"{'../' * place.count('/')}{target}" if target else found[0]

    pieces = []
    for is_prose, piece in outside_code(text):
        pieces.append(LINK.sub(relinked, QUOTE_MARK.sub("", piece)) if is_prose else piece)
    return "".join(pieces)


def slug(heading: str, separator: str = "-") -> str:
    """What a heading is called in links to it: as where repositories are hosted."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)
