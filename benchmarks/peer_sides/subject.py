"""What a case is measured by: its answers, and what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class CannotRunError(RuntimeError):
    """A peer does not do what is asked; the message says why, in a sentence."""


@dataclass(frozen=True)
class Setting:
    """What every case is given.

    `model`: a folder of weights, computed with in float32; `folder`: where the text's tokens lie (`ids`), and
    where answers are left; `prompt`, `steps`: tokens read, and then fed one by one; `budget`: share of the
    prompt that a bounded cache keeps; `longlora`: folder of LongLoRA's release.
    """

    model: str
    folder: str
    prompt: int
    steps: int
    budget: float
    threads: int
    longlora: str | None = None

    def ids(self) -> Tensor:
        """The text's tokens [1, prompt + steps]."""
        from safetensors.torch import load_file

        return load_file(Path(self.folder) / "ids.safetensors")["ids"]


class Answers(NamedTuple):
    """Tensors to compare with a dense reference, and what is told as it is."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Subject(Protocol):
    """One case, its model loaded."""

    def answers(self) -> Answers:
        """What it computes for the setting's tokens."""
        ...

    def laps(self, warm: bool = False) -> dict[str, list[float]]:
        """Seconds of its parts by a `Stopwatch`; `warm`: of a short run, in which libraries come up."""
        ...
