"""The numbers of docs/distributed.md are those that the estimate gives."""

import re
from pathlib import Path

import pytest

from helpers import rest_slow
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepEstimate, StepSpec

PAGE = Path(__file__).resolve().parents[1].joinpath("docs", "distributed.md").read_text(encoding="utf-8")

SUSTAINED = 100e12  # FLOP/s, which the page says


def rows(heading: str) -> list[list[float]]:
    """The numbers of a table's rows; words in them are left out."""
    table = PAGE.split(heading)[1].split("\n\n")[0].strip().splitlines()[1:]
    cells = [[cell.strip().replace(",", "") for cell in line.strip("| ").split("|")] for line in table]
    return [[float(cell) for cell in line if re.fullmatch(r"[\d.]+", cell)] for line in cells]


def step(tokens: float, pattern: str, shape: str = "llama2-7b") -> StepEstimate:
    return estimate(StepSpec(shape, int(tokens), pattern, checkpointing=True))


HELD = rows("| tokens a card holds | peak, GiB | for example |")


@pytest.mark.parametrize("line", rest_slow(HELD), ids=lambda line: f"{line[0]:.0f}")
def test_memory_of_the_page_is_estimated(line: list[float]) -> None:
    tokens, gib = line
    assert step(tokens, "sf").peak_bytes / 2**30 == pytest.approx(gib, abs=0.05)


WORK = rows("| tokens a row | SF-Attn | full attention | SF-Attn, s | full attention, s |")


@pytest.mark.parametrize("line", rest_slow(WORK), ids=lambda line: f"{line[0]:.0f}")
def test_work_of_the_page_is_estimated(line: list[float]) -> None:
    tokens, *pflop = line[:3]
    needed = [step(tokens, pattern).needed_flops for pattern in ("sf", "full")]
    assert [flops / 1e15 for flops in needed] == pytest.approx(pflop, abs=0.005)
    assert [flops / SUSTAINED for flops in needed] == pytest.approx(line[3:], abs=0.05)


def test_hours_of_the_page_follow_from_its_table() -> None:
    """A thousand steps on eight cards that share the rows."""
    seconds = {tokens: sf for tokens, _, _, sf, _ in WORK}
    told = re.search(r"are ([\d.]+) hours on eight such cards, and .* ([\d.]+)\. What", PAGE)
    assert told is not None
    hours = [1000 * count / 8 * seconds[tokens] / 3600 for count, tokens in ((64, 8192), (8, 102400))]
    assert [float(number) for number in told.groups()] == pytest.approx(hours, rel=0.01)


@pytest.mark.slow
def test_a_model_of_70_b_is_estimated() -> None:
    told = re.search(r"A model of 70 B at 32k takes ([\d.]+) GiB", PAGE)
    assert told is not None
    peak = step(32768, "sf", "llama2-70b").peak_bytes / 2**30
    assert peak == pytest.approx(float(told[1]), abs=0.05)
