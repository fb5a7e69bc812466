"""English prose of packages: which paragraphs stay, and that nothing is said twice or in two splits."""

import importlib
from pathlib import Path

import pytest

from sinklora.train.prose import docstrings, is_prose, package_prose, prose_paragraphs
from sinklora.train.sources import (
    SPLITS,
    CorpusSpec,
    content_hash,
    present_source,
    read_documents,
    split_of,
)

SENTENCE = (
    "The cache keeps those of the tokens that have been read most often, and it drops the others as soon as "
    "there is no place for them."
)
OTHER = (
    "A window moves over the text from the left to the right, so that each of its words is seen by the next "
    "one but not by those which come long after it."
)


@pytest.mark.parametrize(
    "paragraph",
    [
        SENTENCE,
        OTHER,
        "If the axis is not given, the values are summed over all of the axes that the array has.",
    ],
)
def test_sentences_are_prose(paragraph: str) -> None:
    assert is_prose(paragraph)


@pytest.mark.parametrize(
    "paragraph",
    [
        "The cache keeps them.",  # too short
        "x : array of shape (n,) in which the values of the first axis are to be summed by the function.",
        "| name | type | what it is and what it does to the values of the array that is given to it here |.",
        "for i in range(10): print(i); total = total + values[i] * weights[i]; if total > limit: break.",
        "Copyright of the authors. This file is part of the package and it may be used as the authors say.",
        "You should have received a copy of the license with this file; if not, it is on the net.",
        "Der Zwischenspeicher behält diejenigen Zeichen, die am häufigsten gelesen wurden, und vergisst.",
        "Added support for Python 3.9, fixed bug 1234, removed deprecated function foo, renamed bar to baz.",
        "the beginning of this one is in the middle of a sentence that has been cut by its author.",
    ],
)
def test_what_is_no_prose(paragraph: str) -> None:
    assert not is_prose(paragraph)


def test_docstrings_in_their_order_without_code() -> None:
    source = (
        f'"""{SENTENCE}"""\n\nclass A:\n    """{OTHER}\n\n    More."""\n\n    def f(self):\n'
        '        """Last."""\n        return """no docstring"""\n'
    )
    assert docstrings(source) == [SENTENCE, f"{OTHER}\n\nMore.", "Last."]
    assert docstrings("def broken(:") == []


def test_lists_headings_and_markup_go() -> None:
    text = (
        f"Summary\n=======\n{SENTENCE}\n\nParameters\n----------\nx : int\n    {OTHER}\n\n"
        ">>> print(1)\n1\n\n"
        "The class :class:`~torch.nn.Linear` is what the *most* of them use, and it is in ``torch`` that "
        "it is `found <https://a.b/c>`_."
    )
    assert list(prose_paragraphs([text])) == [
        SENTENCE,
        "The class torch.nn.Linear is what the most of them use, and it is in torch that it is found.",
    ]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `documented` with prose in several kinds of files."""
    root = tmp_path / "documented"
    (root / "docs").mkdir(parents=True)
    (root / "__init__.py").write_text(f'"""{SENTENCE}"""\n')
    (root / "again.py").write_text(f'"""{SENTENCE.replace("others", "rest")}\n\n{OTHER}"""\n')
    (root / "code.py").write_text("x = 1\n")
    (root / "docs" / "guide.md").write_text(
        "# Guide\n\n" + OTHER.replace("window", "letter").replace("words", "marks").replace("seen", "heard")
        + "\n\nWhen it is asked for a thing that is not there, it says so, and what you are to do about it.\n"
    )  # fmt: skip
    (root / "LICENSE.txt").write_text(SENTENCE.replace("tokens", "rights"))
    (root / "CHANGELOG.rst").write_text(SENTENCE.replace("tokens", "versions"))
    (root / "latin.txt").write_bytes(f"{OTHER} é".encode("latin-1"))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return root


def test_a_paragraph_is_taken_once_in_the_order_of_the_files(package: Path) -> None:
    found = dict(package_prose(package, "documented/"))
    # A paragraph of 28 words has 23 runs of six; one changed word leaves 17 of them, a near-duplicate.
    assert found["documented/__init__.py"] == f"{SENTENCE}\n"
    assert found["documented/again.py"] == f"{OTHER}\n"
    assert found["documented/docs/guide.md"].startswith("When it is asked")
    assert len(found) == 3


def test_prose_is_a_corpus_with_splits_that_share_nothing(package: Path) -> None:
    for number in range(60):
        name = "".join(chr(97 + int(d)) for d in f"{number:03d}")
        text = f"The {name} of it is what they have been {name} for, and it is {name} that is in the {name}."
        (package / f"{name}.txt").write_text(text)
    parts = []
    for split in SPLITS:
        try:
            parts.append(read_documents(CorpusSpec("prose:documented", split, min_characters=0))[0])
        except ValueError:
            parts.append([])
    names = [{document.name for document in part} for part in parts]
    assert sum(map(len, names)) == len(set.union(*names)) == 63
    assert all(split_of(name) == split for part, split in zip(names, SPLITS, strict=True) for name in part)
    again = read_documents(CorpusSpec("prose:documented", min_characters=0))[0]
    assert content_hash(again) == content_hash(parts[0])


def test_a_text_that_is_not_here_is_replaced_by_one_that_is(tmp_path: Path) -> None:
    assert present_source(f"dir:{tmp_path}") == f"dir:{tmp_path}"
    assert present_source(f"dir:{tmp_path}/none") == "prose:"
    assert present_source(f"jsonl:{tmp_path}/none", "installed:") == "installed:"
    assert present_source("hub:somebody/some-books") == "hub:somebody/some-books"
