"""README.md and the texts of docs: what they show runs and prints what they say, and links lead somewhere."""

import dataclasses
import doctest
import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from files_in_texts import EXTENDING, files_in
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]

# Whose blocks go on from one another; those of all others stand alone.
ONE_PROGRAM = [
    ROOT / "docs" / f"{name}.md" for name in ("tutorial-longer-texts", "tutorial-document", "publishing")
]

SNIPPET = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
SNIPPETS = [
    pytest.param(*found.groups(), id=f"{path.name}-{number}")
    for path in TEXTS
    if path not in (*ONE_PROGRAM, EXTENDING)  # whose files the tests of what they add load
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
    run(source, printed, {})


@pytest.mark.parametrize("path", ONE_PROGRAM, ids=lambda path: path.name)
def test_the_blocks_of_a_text_are_one_program(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    variables: dict[str, Any] = {}
    blocks = SNIPPET.findall(path.read_text(encoding="utf-8"))
    assert len(blocks) >= 2
    for source, printed in blocks:
        run(source, printed, variables)


def run(source: str, printed: str, variables: dict[str, Any]) -> None:
    """Execute a block, which has to print what stands below it."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(source, "snippet", "exec"), variables)
    assert doctest.OutputChecker().check_output(printed, out.getvalue(), doctest.ELLIPSIS), out.getvalue()


def test_every_block_of_what_is_added_is_a_file_that_a_test_loads() -> None:
    blocks = SNIPPET.findall(EXTENDING.read_text(encoding="utf-8"))
    loaded = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("tests/*/test_*.py")))
    assert len(blocks) == len(files_in(EXTENDING)) == 4
    assert all(f'"{name}"' in loaded for name in files_in(EXTENDING))


def test_the_fields_of_a_training_specification_are_listed_with_their_defaults() -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.+) \|$", text, re.MULTILINE)
    listed = {name: default.strip("` ") for name, default, _ in lines}
    fields = {field.name: field.default for field in dataclasses.fields(TrainSpec)}
    assert set(listed) == set(fields)
    for name in set(fields) - {"corpus"}:
        default = None if listed[name] == "–" else yaml.safe_load(listed[name])
        assert default == fields[name], name
    [corpus] = [said for name, _, said in lines if name == "corpus"]
    assert {name for name in re.findall(r"`(\w+)`", corpus)} == {
        field.name for field in dataclasses.fields(CorpusSpec)
    }


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
