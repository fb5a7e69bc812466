"""English prose in installed packages: paragraphs of docstrings and of documentation files.

Sentences stay; code, tables, lists of parameters, markup, licences, changelogs and other languages go, and so
does what was said before, in these or nearly these words.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from sinklora.records.files import visible_files

SUFFIXES = (".py", ".rst", ".md", ".txt")

LEFT_OUT = re.compile(
    r"licen[cs]e|copying|copyright|notice|change|history|news|release|whats_?new|authors|credits"
    r"|requirements|entry_points|top_level|sources|vendor|tests?$",
    re.IGNORECASE,
)

HEADING = re.compile(r"\A[^\n]*\n[-=~^#*]{3,}\n")

LEGAL = re.compile(r"copyright|licen[cs]e|warrant(y|ies)|all rights reserved|redistribut", re.IGNORECASE)

# The most frequent words of English: every fourth word of prose or more, hardly one of a list or of code.
FUNCTION_WORDS = frozenset(
    [
        "a", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "do", "does", "for",
        "from", "has", "have", "if", "in", "into", "is", "it", "its", "may", "more", "must", "no",
        "not", "of", "on", "only", "or", "other", "should", "so", "such", "than", "that", "the",
        "their", "them", "then", "there", "these", "they", "this", "to", "was", "were", "when",
        "where", "which", "will", "with", "would", "you", "your",
    ]
)  # fmt: skip

LEAST_FUNCTION_WORDS = 0.28

LEAST_WORDS = 12

LEAST_LETTERS = 0.93  # of a paragraph's characters: letters, blanks and the marks of sentences

SHINGLE = 6  # words in a row by which repetitions are known

MOST_REPEATED = 0.2  # of a paragraph's shingles


def package_prose(root: Path, prefix: str) -> Iterator[tuple[str, str]]:
    """Name (`prefix` and the path inside the package) and prose of each file that has any.

    Files come in the order of their paths; a paragraph that repeats an earlier one, of whichever file, is
    left out, so that neither documents nor splits share text. What cannot be read as UTF-8 is passed over.
    """
    seen: set[str] = set()
    for path in visible_files(root):
        inside = path.relative_to(root)
        if path.suffix not in SUFFIXES or any(LEFT_OUT.search(part.split(".")[0]) for part in inside.parts):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, ValueError):
            continue
        texts = docstrings(text) if path.suffix == ".py" else [text]
        kept = [p for p in prose_paragraphs(texts) if _is_new(p, seen)]
        if kept:
            yield f"{prefix}{inside.as_posix()}", "\n\n".join(kept) + "\n"


def docstrings(source: str) -> list[str]:
    """The docstrings of a Python file, in its order and without their indentation; none where it is not
    Python.
    """
    return [text for _, text in named_docstrings(source)]


def named_docstrings(source: str) -> list[tuple[str, str]]:
    """The same with the name of what each describes: "" (the file), "function", "Class", "Class.method"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return list(_docstrings_in(tree, ""))


def _docstrings_in(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    """Of a node and of the classes and functions that stand directly in it."""
    if text := ast.get_docstring(node):
        yield name, text
    for statement in node.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_in(statement, f"{name}.{statement.name}".lstrip("."))


def prose_paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """The paragraphs of sentences in texts, each on one line and without marks of markup."""
    for text in texts:
        for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
            block = HEADING.sub("", block)
            lines = block.split("\n")
            if any(line.startswith((" ", "\t")) for line in lines[1:]) and not _evenly_indented(lines):
                continue  # a definition with its description, a list, code
            paragraph = _without_markup(" ".join(block.split()))
            if is_prose(paragraph):
                yield paragraph


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is made of English sentences: it begins and ends like one, has a verb's and an
    article's company of small words, and hardly a sign that is no letter; legal text is none.
    """
    words = re.findall(r"[A-Za-z']+", paragraph)
    if len(words) < LEAST_WORDS or not re.match(r"[A-Z][a-z]*[ ,']", paragraph):
        return False
    if not paragraph.endswith((".", "?", "!")) or LEGAL.search(paragraph):
        return False
    plain = len(re.findall(r"[A-Za-z ,.;:'?!()-]", paragraph))
    small = sum(word.lower() in FUNCTION_WORDS for word in words)
    return plain >= LEAST_LETTERS * len(paragraph) and small >= LEAST_FUNCTION_WORDS * len(words)


def _evenly_indented(lines: list[str]) -> bool:
    """Whether a block of text is indented as a whole, by less than code is."""
    indents = {len(line) - len(line.lstrip()) for line in lines}
    return len(indents) == 1 and max(indents) < 4


def _without_markup(text: str) -> str:
    text = re.sub(
        r"(?::[\w:+-]+:)?`{1,2}~?\.?([^`<]*?)(\s*<[^>]*>)?`{1,2}_{0,2}", r"\1", text
    )  # roles, links
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\*{1,2}([^*\s][^*]*)\*{1,2}", r"\1", text)


def _is_new(paragraph: str, seen: set[str]) -> bool:
    """Whether few of a paragraph's runs of words were seen before; they count as seen from now on."""
    words = re.findall(r"[a-z]+", paragraph.lower())
    runs = {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
    repeated = len(runs & seen)
    seen |= runs
    return repeated <= MOST_REPEATED * len(runs)
