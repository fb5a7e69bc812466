"""Specs that check themselves: wrong types and ranges are named by field, and nothing is changed."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, Field

from sinklora.records.checks import (
    Count,
    Distinct,
    NotNegative,
    Positive,
    Share,
    check_choice,
    check_counts,
    check_fields,
    check_value,
    one_of,
    read_fields,
)


@dataclass(frozen=True)
class Source:
    path: str
    most: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def with_a_model(folder: Path) -> Path:
    if folder.name == "here":
        raise ValueError("a folder with a model")
    return folder


@dataclass(frozen=True)
class Spec:
    source: Source = field(default_factory=lambda: Source("here"))
    steps: Count = 60
    warmup: NotNegative = 0
    rate: Positive = 2e-5
    limit: Positive | None = None
    share: Share = 0.0
    window: int | float | None = None
    method: Annotated[str, one_of(("adapter", "full"))] = "full"
    compile: bool = False
    seeds: Distinct[int] = (0,)
    length: Annotated[int, Field(multiple_of=8)] = 64
    folder: Annotated[Path, AfterValidator(with_a_model)] = Path("there")
    sets: Annotated[dict[str, Source], Field(min_length=1)] = field(
        default_factory=lambda: {"a": Source("x")}
    )

    def __post_init__(self) -> None:
        check_fields(self)


REFUSED = [
    ({"steps": 0}, ValueError, "steps=0: expected at least 1"),
    ({"steps": "60"}, TypeError, "steps='60': expected a whole number; write 60, not text"),
    ({"steps": 60.0}, TypeError, "steps=60.0: expected a whole number; write 60"),
    ({"steps": 2.5}, TypeError, "steps=2.5: expected a whole number"),
    ({"steps": True}, TypeError, "steps=True: expected a whole number"),
    ({"steps": None}, TypeError, "steps=None: expected a whole number"),
    ({"warmup": -1}, ValueError, "warmup=-1: expected at least 0"),
    ({"rate": 0.0}, ValueError, "rate=0.0: expected more than 0"),
    ({"rate": True}, TypeError, "rate=True: expected a number"),
    ({"rate": "fast"}, TypeError, "rate='fast': expected a number"),
    ({"rate": math.nan}, ValueError, "rate=nan: expected a finite number"),
    ({"limit": -1.0}, ValueError, "limit=-1.0: expected more than 0 or None"),
    ({"limit": False}, TypeError, "limit=False: expected a number or None"),
    ({"share": 1}, ValueError, "share=1: expected less than 1"),
    ({"window": "0.25"}, TypeError, "expected a whole number or a number or None; write 0.25, not text"),
    ({"window": True}, TypeError, "window=True: expected a whole number or a number or None"),
    ({"method": "half"}, ValueError, "method='half': expected one of adapter, full"),
    ({"method": 3}, TypeError, "method=3: expected text"),
    ({"compile": "no"}, TypeError, "compile='no': expected True or False"),
    ({"compile": 0}, TypeError, "compile=0: expected True or False"),
    ({"seeds": ()}, ValueError, "seeds=(): expected at least one, and none twice"),
    ({"seeds": (1, 1)}, ValueError, "seeds=(1, 1): expected at least one, and none twice"),
    ({"seeds": (1, "2")}, TypeError, "seeds[1]='2': expected a whole number; write 2, not text"),
    ({"length": 60}, ValueError, "length=60: expected a multiple of 8"),
    ({"folder": Path("here")}, ValueError, "folder='here': expected a folder with a model"),
    ({"sets": {}}, ValueError, "sets={}: expected at least 1"),
    ({"sets": {"a": "x"}}, TypeError, "sets['a']='x': expected Source"),
]


@pytest.mark.parametrize("read", [False, True], ids=["made", "read"])
@pytest.mark.parametrize(("changes", "error", "words"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_what_the_annotations_do_not_allow_is_named(
    changes: dict[str, Any], error: type[Exception], words: str, read: bool
) -> None:
    with pytest.raises(error, match=f"{re.escape(words)}$"):
        read_fields(Spec, changes) if read else Spec(**changes)


def test_python_takes_no_text_for_a_number_and_no_list_for_a_tuple() -> None:
    with pytest.raises(TypeError, match=r"^rate='2e-5': expected a number; write 2e-05, not text$"):
        Spec(rate="2e-5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^seeds=\[0\]: expected a tuple$"):
        Spec(seeds=[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^source='x': expected Source$"):
        Spec(source="x")  # type: ignore[arg-type]


def test_values_stay_as_they_were_written() -> None:
    # 1 and 1.0 hash differently, and a run is known by the hash of its spec.
    spec = Spec(rate=1, limit=3, window=512, share=0)
    assert [type(v) for v in (spec.rate, spec.limit, spec.window, spec.share)] == [int] * 4
    assert type(read_fields(Spec, {"window": 0.25}).window) is float


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2e-05", ".00002", "0.2e-4", "+2e-5", "20.e-6"])
def test_numbers_that_yaml_reads_as_text_are_numbers_for_float_fields(text: str) -> None:
    spec = read_fields(Spec, yaml.safe_load(f"rate: {text}\nlimit: '{text}'"))
    assert type(spec.rate) is float and spec.rate == spec.limit == 2e-5


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_every_float_survives_as_text(value: float) -> None:
    assert read_fields(Spec, {"rate": repr(value)}).rate == value


@pytest.mark.parametrize("text", ["", " 2e-5", "2e", "e5", "nan", "inf", "1_0", "0x1", "2,5", "1e400", "٣"])
def test_text_that_is_no_exact_number_is_refused(text: str) -> None:
    with pytest.raises((TypeError, ValueError), match="rate="):
        read_fields(Spec, {"rate": text})


def test_specs_within_specs_and_lists_are_read() -> None:
    values = {"source": {"path": "there", "most": 5}, "seeds": [1, 2], "limit": None}
    assert read_fields(Spec, values) == Spec(source=Source("there", 5), seeds=(1, 2))
    assert read_fields(Spec, {}) == Spec()
    spec = Spec(source=Source("there"))
    assert read_fields(Spec, dataclasses.asdict(spec) | {"sets": spec.sets}) == spec


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"stpes": 3}, ValueError, "Spec has no key 'stpes'; did you mean 'steps'?"),
        ({"zzz": 3}, ValueError, "Spec has no key 'zzz'; it has source, steps, "),
        ({7: 3}, ValueError, "Spec has no key 7; it has source"),
        (
            {"source": {"path": "x", "moost": 3}},
            ValueError,
            "source: Source has no key 'moost'; did you mean 'most'",
        ),
        (
            {"source": {"path": "x", "most": "9"}},
            TypeError,
            "source: most='9': expected a whole number or None",
        ),
        ({"source": {}}, ValueError, "source: Source lacks the key 'path'; it needs path"),
        ({"source": "x"}, TypeError, "source: Source='x': expected keys and values, such as path: …"),
        (None, TypeError, "Spec=None: expected keys and values"),
        (["steps"], TypeError, "Spec=['steps']: expected keys and values"),
    ],
    ids=str,
)
def test_wrong_keys_are_named(values: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(words)}"):
        read_fields(Spec, values)


def test_counts_of_arguments() -> None:
    check_counts(trials=1, tokens=10**9)
    with pytest.raises(ValueError, match=r"^tokens=1: expected at least 2$"):
        check_counts(2, trials=2, tokens=1)
    for wrong, advice in ((True, ""), (2.5, ""), (1.0, "; write 1"), ("1", "; write 1, not text")):
        with pytest.raises(TypeError, match=f"^trials={wrong!r}: expected a whole number{advice}$"):
            check_counts(trials=wrong)  # type: ignore[arg-type]


def test_a_choice_of_an_argument() -> None:
    check_choice("split", "test", ("train", "test"))
    with pytest.raises(ValueError, match=r"^split='all': expected one of train, test$"):
        check_choice("split", "all", ("train", "test"))
    with pytest.raises(TypeError, match=r"^split=3: expected text$"):
        check_choice("split", 3, ("train", "test"))  # type: ignore[arg-type]


def test_a_registry_may_grow_after_it_was_named() -> None:
    known: dict[str, int] = {"first": 1}
    named = Annotated[str, one_of(known)]
    with pytest.raises(ValueError, match=r"name='second': expected one of first$"):
        check_value("name", "second", named)
    known["second"] = 2
    check_value("name", "second", named)
