"""Timing: rounds, ratios and laps by hand; no assertion depends on how fast the machine is."""

import time

import pytest
import torch

from sinklora.evaluate.timing import Seconds, Stopwatch, in_rounds, median_ratio, timed


def test_every_case_runs_once_a_round_and_the_warm_up_is_left_out() -> None:
    calls: list[str] = []

    def case(name: str) -> str:
        calls.append(name)
        return f"{name}{calls.count(name)}"

    results = in_rounds({"a": lambda: case("a"), "b": lambda: case("b")}, rounds=2, warmup=1, progress=False)
    assert calls == ["a", "b"] * 3
    assert results == {"a": ["a2", "a3"], "b": ["b2", "b3"]}


def test_ratios_are_within_the_round_and_their_median_is_taken() -> None:
    # The machine slows down tenfold, then a hundredfold; medians of the values would give 30 / 20.
    assert median_ratio([3.0, 30.0, 500.0], [2.0, 20.0, 100.0]) == 1.5
    assert median_ratio([1.0, 1.0], [2.0, 2.0]) == 0.5
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1.0], [1.0, 2.0])


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that show what they are told."""
    wall, processor = iter([1.0, 3.0, 10.0]), iter([0.5, 0.75, 4.75])
    monkeypatch.setattr(time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(time, "process_time", lambda: next(processor))


@pytest.mark.usefixtures("clocks")
def test_laps_follow_each_other() -> None:
    watch = Stopwatch("cpu")
    assert watch.lap() == Seconds(2.0, 0.25)
    assert watch.lap() == Seconds(7.0, 4.0)


@pytest.mark.usefixtures("clocks")
def test_a_call_lies_between_the_clocks() -> None:
    assert timed(time.perf_counter, "cpu") == Seconds(9.0, 0.25)


@pytest.mark.gpu
def test_a_lap_on_cuda_ends_with_what_was_asked_of_the_device() -> None:
    x = torch.randn(8192, 8192, device="cuda")
    stream = torch.cuda.current_stream()
    for _ in range(50):
        x @ x
    assert not stream.query(), "calls return before the device is done"
    watch = Stopwatch("cuda")
    assert stream.query()
    for _ in range(50):
        x @ x
    watch.lap()
    assert stream.query()
