"""The synthetic data sets in LongBench's format, made of Python sources."""

import email
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_close
from longbench_records import write_records
from sinklora.evaluate.longbench.metrics import score
from sinklora.evaluate.longbench.records import Record, load_records
from sinklora.evaluate.longbench.tasks import SMALL, task_of
from sinklora.reproduction.longbench.python_sources import functions_of, window
from sinklora.reproduction.longbench.synthetic_sets import synthetic_dataset
from sinklora.train.fitting import longest


def words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    """Sources of the standard library."""
    folders = [Path(str(module.__file__)).parent for module in (email, json, logging)]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    return [(f"{file.parent.name}/{file.name}", file.read_text(encoding="utf-8")) for file in files]


def small(name: str, documents: list[tuple[str, str]], **options: Any) -> list[Record]:
    settings = {"examples": 4, "count_tokens": words, "tokens": 400, "seed": 0} | options
    return synthetic_dataset(name, documents, **settings)


@pytest.mark.parametrize("name", SMALL)
def test_synthetic_sets_are_reproducible_and_fit(
    name: str, documents: list[tuple[str, str]], tmp_path: Path
) -> None:
    made = small(name, documents)
    assert made == small(name, documents)
    assert made != small(name, documents, seed=1)
    assert len({r.id for r in made}) == 4
    assert {r.dataset for r in made} == {name}
    sizes = [words(task_of(name).prompt(r.context, r.input)) for r in made]
    assert max(sizes) <= 400
    if name != "small_gov_report":  # one function, as long as it is
        assert max(sizes) > 300
    write_records(tmp_path / f"{name}.jsonl", made)
    assert load_records(tmp_path, name) == made


@pytest.mark.parametrize("name", SMALL)
def test_the_answers_of_synthetic_sets_score_in_full(name: str, documents: list[tuple[str, str]]) -> None:
    made = small(name, documents, examples=8)
    assert len({r.all_classes for r in made}) == 1
    answers = [r.answers for r in made]
    assert_close(score(name, [a[0] for a in answers], answers, made[0].all_classes), 100, atol=1e-4)
    assert score(name, [""] * 8, answers, made[0].all_classes) == 0


def test_synthetic_sets_ask_what_the_context_answers(documents: list[tuple[str, str]]) -> None:
    texts = [text for _, text in documents]
    for r in small("small_lcc", documents):
        assert any(r.context + r.answers[0] + "\n" in text for text in texts)
    for name in ("small_multifieldqa_en", "small_hotpotqa"):
        for r in small(name, documents):
            asked = [word.rstrip("?") for word in r.input.split()]
            functions = [asked[i + 1] for i, word in enumerate(asked) if word == "function"]
            assert len(functions) == (1 if name == "small_multifieldqa_en" else 2)
            assert all(r.context.count(f"def {function}(") == 1 for function in functions)
            assert r.answers[0].split()[0] in r.context
    for r in small("small_gov_report", documents):
        assert r.answers[0] not in r.context and any(r.answers[0] in text for text in texts)
    for r in small("small_trec", documents):
        assert r.all_classes == ("email", "json", "logging")
        assert all(f"Module: {label}\n" in r.context for label in r.all_classes)
        assert r.input.removesuffix("Module:") not in r.context
    for r in small("small_passage_retrieval_en", documents):
        passages = dict(part.split(":\n", 1) for part in r.context.split("\n\n"))
        assert [name for name, text in passages.items() if r.input in text] == [r.answers[0]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lcc", {}, "name='lcc'"),
        ("small_lcc", {"examples": 0}, "examples=0"),
        ("small_lcc", {"tokens": 0}, "tokens=0"),
        ("small_lcc", {"documents": []}, "documents=0"),
        ("small_lcc", {"tokens": 9}, "only 0 of small_lcc found in .* tokens=9"),
        ("small_trec", {"documents": [("a/b.py", "x = 1\n" * 50)]}, "only 0 of small_trec"),
        ("small_multifieldqa_en", {"documents": [("a/b.py", "def f(:\n" * 50)]}, "only 0 of"),
    ],
)
def test_impossible_synthetic_sets_say_what_to_change(
    name: str, options: dict[str, Any], message: str, documents: list[tuple[str, str]]
) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **({"documents": documents} | options))


def test_functions_and_their_defaults() -> None:
    text = (
        "class A:\n    def f(self, a, b=1, *, c='x', d=None, e=True, g='', h='the'):\n"
        '        """Do three things.\n\n        More.\n        """\n        return b\n\n'
        "def twice(a=1): pass\ndef twice(a=2): pass\n"
    )
    [function] = functions_of(text)
    assert function.name == "f"
    assert function.defaults == (("b", "1"), ("c", "'x'"))
    assert function.summary == "Do three things."
    signature = text.split("\n")[1].strip()
    assert function.source_without_docstring == f"{signature}\n    return b"
    assert function.body_lines == 1
    assert window(text, function, 0, 0.5) == text.split("\n")[1]
    assert window(text, function, 2, 0.5) == "\n".join(text.split("\n")[:3])
    assert window(text, function, 99, 0.5) == text


@given(st.integers(0, 60), st.integers(-1, 70))
def test_the_longest_that_fits(most: int, fitting: int) -> None:
    assert longest(most, lambda n: n <= fitting) == max(0, min(most, fitting))
