"""Docstrings in the form of numpydoc: what they state, with the line breaks of full lines taken out."""

import inspect
import random
from dataclasses import replace

import pytest

from sinklora.train.instructions.documentation import (
    Entry,
    Page,
    Parameter,
    first_sentence,
    licence_of,
    unwrapped,
)
from sinklora.train.instructions.page_questions import (
    around,
    ask_for_summary,
    ask_of_several,
    questions_of,
    shown,
)

TEXT = inspect.cleandoc(
    """
    Keeps the newest
    of all the values.

    Parameters
    ----------
    a : {'left', 'right'}, default: 'left'
        Which side the values are counted from, where there are two of them and
        both may be meant. More on that below.
    b, c : int
        Two at once are not asked for.
    size : int, optional (default=10)
        How many there are, e.g. ten. More.
    verbose : bool, default False

    Returns
    -------
    kept : list of values
        The values that were kept, newest first. Never more.

    Examples
    --------
    >>> keep([1, 2, 3], a='left', size=2, verbose=True)  # a line that is long enough
    [2, 3]
    """
)
ENTRY = Entry("Store.keep", unwrapped(TEXT))


def test_what_a_docstring_states() -> None:
    assert ENTRY.summary == "Keeps the newest of all the values."
    left = "Which side the values are counted from, where there are two of them and both may be meant"
    found = {parameter.name: parameter for parameter in ENTRY.parameters() if parameter.name}
    assert found == {
        "a": Parameter("a", "{'left', 'right'}, default: 'left'", "'left'", left),
        "size": Parameter("size", "int, optional (default=10)", "10", "How many there are, e.g. ten"),
        "verbose": Parameter("verbose", "bool, default False", "False", ""),
    }
    assert ENTRY.returned() == "The values that were kept, newest first"
    assert ENTRY.without_summary.startswith("Parameters\n---")


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("float, default 1e-6", "1e-6"),
        ("str or None, optional (default='weight')", "'weight'"),
        ("int, default: 5.", "5"),
        ("tuple, default=(0, 1)", "(0, 1)"),
        ("int, optional", ""),
        ("int, or None (default)", ""),
    ],
)
def test_defaults(type: str, value: str) -> None:
    [parameter] = Entry("f", f"A.\n\nParameters\n----------\nx : {type}\n    It is.").parameters()
    assert parameter.default == value


def test_code_tables_and_items_keep_their_lines() -> None:
    long = "x" * 60
    for text in (
        f">>> f({long})\n{long}",
        f"{long}\n- {long}",
        f"{long}\n{long}  2",
        f"    {long}\nnot indented",
        f"{long}\nname : int",
        "short\nlines",
    ):
        assert unwrapped(text) == text.strip()
    assert unwrapped(f"{long}\nand on") == f"{long} and on"


def test_the_first_sentence() -> None:
    assert first_sentence("One. Two.") == "One"
    assert first_sentence("It is 1.5 of it, i.e. more. Two") == "It is 1.5 of it, i.e. more"
    assert first_sentence("no end") == ""


def test_what_is_asked_has_its_answer_in_the_text() -> None:
    asked = {what: answer for what, _, answer in questions_of(ENTRY)}
    # That something is False by default, or an int, is right without reading.
    assert set(asked) == {"a.default", "a.meaning", "size.default", "size.meaning", "return"}
    assert all(answer in ENTRY.text for answer in asked.values())


def page(name: str, count: int = 9, type: str = "list of things") -> Page:
    entries = [
        Entry(
            f"{name}_{n}",
            f"Does {name} {n}.\n\nParameters\n----------\nx : {type}\n    Given.\n\n{'word ' * 10 * n}",
        )
        for n in range(count)
    ]
    return Page(f"pack/{name}.py", tuple(entries), "pack", "0" * 64)


def test_the_text_around_an_entry_is_in_order_and_no_longer_than_asked() -> None:
    whole, firsts = page("a"), set()
    for seed in range(30):
        rng = random.Random(seed)
        chosen = around(whole, 4, 900, rng)
        assert whole.entries[4] in chosen and sum(len(entry.text) for entry in chosen) <= 900
        begin = whole.entries.index(chosen[0])
        assert tuple(chosen) == whole.entries[begin : begin + len(chosen)]
        firsts.add(begin)
    assert len(firsts) > 1
    assert around(whole, 4, 10**6, random.Random(0)) == list(whole.entries)
    assert around(whole, 8, 1, random.Random(0)) == [whole.entries[8]]


def test_a_summary_is_not_in_the_text_that_it_is_asked_of() -> None:
    whole = page("a")
    quoting = Entry("quoting", f"Says the same.\n\n{whole.entries[3].summary} So it was said above.")
    whole = replace(whole, entries=(*whole.entries, quoting))
    asked = ask_for_summary(whole, 3, 9000, random.Random(0))
    assert "So it was said above." in asked.context
    assert asked.answer == "Does a 3." and asked.answer not in asked.context
    assert "## a_3" in asked.context and "Does a 4." in asked.context


def test_several_files_are_asked_for_a_place_or_for_two_statements() -> None:
    pages = [page("a"), page("b", type="set of things"), page("c", type="map")]
    found = [ask_of_several(pages, 3000, random.Random(seed)) for seed in range(20)]
    answers = {asked.answer for asked in found if asked}
    assert {"pack/a.py", "pack/b.py", "pack/c.py"} & answers
    assert any("list of things; `b_" in answer or "set of things; `c_" in answer for answer in answers)
    for asked in filter(None, found):
        assert asked.document == "pack/a.py, pack/b.py, pack/c.py"
        assert all(f"File: {one.name}" in asked.context for one in pages)
    assert shown(pages[0], pages[0].entries[:1]).startswith("File: pack/a.py\n\n## a_0\n\nDoes a 0.")


def test_licences_are_those_that_packages_state() -> None:
    assert licence_of("networkx") == "BSD-3-Clause"
    assert licence_of("sympy") == "BSD License"
    assert licence_of("no_such_package") == "not stated"
