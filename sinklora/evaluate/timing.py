"""Wall and processor time of calls, compared in rounds so that a busy machine slows all of them alike.

torch.utils.benchmark measures one statement after the other, and sets the number of threads itself; ratios
that hold on a shared machine need the cases in turn, within each round.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple, TypeVar

import torch
from tqdm.auto import tqdm

Case = TypeVar("Case", bound=Hashable)
Result = TypeVar("Result")


class Seconds(NamedTuple):
    """What passed on the wall's clock, and what this process computed meanwhile."""

    wall: float
    processor: float


class Stopwatch:
    """Measures laps; on a CUDA device each ends when all that was asked of the device is done."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._last = self._now()

    def lap(self) -> Seconds:
        """The time since the last lap, or since the watch was made."""
        before, self._last = self._last, self._now()
        return Seconds(*(now - then for now, then in zip(self._last, before, strict=True)))

    def _now(self) -> Seconds:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Seconds(time.perf_counter(), time.process_time())


def timed(run: Callable[[], object], device: torch.device | str) -> Seconds:
    """The time of one call; what it returns is let go of first."""
    watch = Stopwatch(device)
    run()
    return watch.lap()


def in_rounds(
    cases: Mapping[Case, Callable[[], Result]],
    *,
    rounds: int,
    warmup: int = 1,
    what: str = "",
    progress: bool | None = None,
) -> dict[Case, list[Result]]:
    """What each case returns in each round, where every case is called once; warm-up rounds are left out.

    `progress`: None shows it on a terminal alone.
    """
    results: dict[Case, list[Result]] = {name: [] for name in cases}
    hidden = None if progress is None else not progress
    for count in tqdm(range(warmup + rounds), desc=what, disable=hidden):
        for name, run in cases.items():
            result = run()
            if count >= warmup:
                results[name].append(result)
    return results


def median_ratio(values: Sequence[float], base: Iterable[float]) -> float:
    """The median of the ratios to the base's value of the same round."""
    return median(value / own for value, own in zip(values, base, strict=True))
