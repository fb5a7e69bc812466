"""README.md and the texts of docs: what they show runs and prints what they say, and links lead somewhere."""

import doctest
import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    pytest.param(*found.groups(), id=f"{path.name}-{number}")
    for path in TEXTS
    for number, found in enumerate(SNIPPET.finditer(path.read_text(encoding="utf-8")))
]


def test_there_are_snippets_in_readme() -> None:
    assert [case.id for case in SNIPPETS].count("README.md-0") == 1 and len(SNIPPETS) >= 4


@pytest.mark.parametrize(("source", "printed"), SNIPPETS)
def test_a_snippet_prints_what_stands_below_it(
    source: str, printed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert printed is not None, "no output is shown"
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(source, "snippet", "exec"), {})
    assert doctest.OutputChecker().check_output(printed, out.getvalue(), doctest.ELLIPSIS), out.getvalue()


def anchors(path: Path) -> set[str]:
    """What the headings of a text are called in links to it."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    for link in (link for link in links if "://" not in link):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_links_to_every_text_of_docs() -> None:
    links = re.findall(r"\]\((docs/[^)]+\.md)\)", TEXTS[0].read_text(encoding="utf-8"))
    assert set(links) == {f"docs/{path.name}" for path in ROOT.glob("docs/*.md")}
