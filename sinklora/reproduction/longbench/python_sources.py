"""What the synthetic data sets ask about Python sources: functions with defaults and summaries, and the text
around them.
"""

import ast
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

ARTICLES = ("a", "an", "the")  # which scoring removes from an answer

WORDS = 3  # at least, of a summary


@dataclass(frozen=True)
class Function:
    """A function: lines `first` to `last` (from 0, `last` excluded) of its text are its signature.

    `defaults` are pairs of parameter and value as written; `summary` is the docstring's first line, empty
    where that is short or missing.
    """

    name: str
    first: int
    last: int
    defaults: tuple[tuple[str, str], ...]
    summary: str
    source_without_docstring: str
    body_lines: int


@lru_cache(maxsize=1024)
def functions_of(text: str) -> tuple[Function, ...]:
    """The functions whose name occurs once in `text`, so that a question can name them; none where the text
    is not Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    lines = text.split("\n")  # as ast counts them
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    names = Counter(node.name for node in nodes)
    return tuple(_function(node, lines) for node in nodes if names[node.name] == 1)


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]) -> Function:
    docstring = ast.get_docstring(node) or ""
    first_line = docstring.partition("\n")[0].strip()
    start, end = node.lineno - 1, node.end_lineno or node.lineno
    kept = list(range(start, end))
    if docstring:
        stop = node.body[0].end_lineno or node.body[0].lineno
        kept = [i for i in kept if not node.body[0].lineno - 1 <= i < stop]
    indent = len(lines[start]) - len(lines[start].lstrip())
    return Function(
        name=node.name,
        first=start,
        last=max(start + 1, node.body[0].lineno - 1),
        defaults=tuple(_defaults(node.args)),
        summary=first_line if len(first_line.split()) >= WORDS else "",
        source_without_docstring="\n".join(lines[i][indent:] for i in kept),
        body_lines=len(kept) - max(1, node.body[0].lineno - 1 - start),
    )


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, str]]:
    """Numbers and strings, but not those of which scoring leaves nothing; None, True and False are too easily
    guessed.
    """
    positional = [*arguments.posonlyargs, *arguments.args]
    tail = positional[len(positional) - len(arguments.defaults) :]
    pairs = [
        *zip(tail, arguments.defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    for parameter, default in pairs:
        if not isinstance(default, ast.Constant) or type(default.value) not in (int, float, str):
            continue
        letters = "".join(character for character in str(default.value) if character.isalnum())
        if letters and letters.lower() not in ARTICLES and len(str(default.value)) <= 40:
            yield parameter.arg, ast.unparse(default)


def window(text: str, function: Function, extra: int, place: float) -> str:
    """The function's signature with `extra` lines around it, a share `place` (0 to 1) of them before; what
    one side lacks, the other gets.
    """
    lines = text.split("\n")
    start = max(0, function.first - round(extra * place))
    stop = min(len(lines), function.last + extra - (function.first - start))
    start = max(0, start - (extra - (function.first - start) - (stop - function.last)))
    return "\n".join(lines[start:stop])


def plain_lines(lines: Sequence[str]) -> list[int]:
    """Indices of the lines that code similarity would not skip: not blank, no comment, no markup."""
    marks = ("`", "#", "//")
    return [i for i, line in enumerate(lines) if line.strip() and not any(mark in line for mark in marks)]
