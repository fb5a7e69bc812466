"""Full attention trained for as many seconds as each sparse pattern took, in place of as many steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.evaluate.timing import median_ratio
from sinklora.evaluate.training_step import compared_rounds
from sinklora.records.runs import run_records
from sinklora.records.tables import Column, Number, Spread, Table
from sinklora.reproduction.extension.comparison import NATS, NOT_VALID, Losses
from sinklora.reproduction.extension.study import ExtensionStudy, check_equal_time, measure
from sinklora.reproduction.extension.tables import ABOVE, METHOD, Nats, estimate_fields
from sinklora.reproduction.extension.timed_steps import step_of
from sinklora.reproduction.names import LABELS
from sinklora.reproduction.report.claims import Claim, family
from sinklora.reproduction.report.summaries import mean_and_sd

STEP_TIME = "time of a step (full attention's: 1)"

BELOW = "nats below full attention in its time"


@dataclasses.dataclass(frozen=True)
class EqualTime:
    """How long a pattern's step takes beside full attention's, and how many of its steps fit in that time."""

    step_time: float
    steps: int


def timed_name(pattern: str) -> str:
    """What tables call full attention that was trained for as long as a pattern."""
    return f"full attention in {pattern}'s time"


def in_equal_time(
    study: ExtensionStudy, patterns: Sequence[str], *, runs: Path, progress: bool = True
) -> tuple[pd.DataFrame, dict[str, EqualTime]]:
    """Rows of full attention trained for as many seconds as each of the patterns takes, by `timed_name`; and
    what that comes to.

    Each pattern's step and full attention's are compared where they are trained, on the CPU in turn, so that
    a load that changes does not change their ratio (`compared_rounds`). Raises ValueError for patterns that
    the study does not train.
    """
    check_equal_time(study, patterns)
    used: list[Path] = []
    times = {pattern: _equal_time(study, pattern, runs, used) for pattern in patterns}
    frames, records = [], run_records(used)
    for pattern, time in times.items():
        changes = (*study.changes, ("steps", time.steps))
        shorter = dataclasses.replace(study, patterns=("full",), own_attention=(), changes=changes)
        measured = measure(shorter, runs=runs, progress=progress)
        records += measured.attrs["runs"]
        frames.append(measured[measured.seed.notna()].assign(method=timed_name(pattern)))
    rows = pd.concat(frames, ignore_index=True)
    rows.attrs["runs"] = list({record["run"]: record for record in records}.values())
    return rows, times


def _equal_time(study: ExtensionStudy, pattern: str, runs: Path, used: list[Path]) -> EqualTime:
    spec = study.training
    steps = [step_of(spec, name) for name in ("full", pattern)]
    of_full, of_sparse = compared_rounds(steps, runs=runs, used=used)
    ratio = median_ratio(of_sparse, of_full)
    return EqualTime(ratio, max(1, round(spec.steps * ratio)))


def equal_time_claims(
    found: Losses, times: Mapping[str, EqualTime], *, valid: bool, model: str
) -> list[Claim]:
    """Claims that each pattern is better than full attention of as many seconds; ours, not the paper's. One
    correction for all.
    """
    blank = Claim("Table 1", "", "not decided", unit=NATS, table="equal_time", model=model, restated=True)
    blank = blank if valid else dataclasses.replace(blank, reason=NOT_VALID)
    return family(
        {
            dataclasses.replace(
                blank,
                sentence=f"{LABELS.get(pattern, pattern)} is better than full attention in as many seconds "
                f"({time.steps} steps)",
            ): found.lead(pattern, timed_name(pattern))
            for pattern, time in times.items()
        }
    )


def equal_time_table(
    found: Losses, untrained: Sequence[str], times: Mapping[str, EqualTime], steps: int
) -> Table:
    """One line a model: what needs no training, full attention trained for all `steps`, each pattern, and
    full attention in that pattern's time. Perplexity, and nats with 95 % intervals.
    """
    lines = [_line(found, name) for name in untrained]
    lines.append({**_line(found, "full"), "steps": steps, STEP_TIME: 1.0})
    for pattern, time in times.items():
        line = {**_line(found, pattern), "steps": steps, STEP_TIME: time.step_time}
        lines.append(line | estimate_fields(BELOW, found.lead(pattern, timed_name(pattern))))
        lines.append({**_line(found, timed_name(pattern)), "steps": time.steps, STEP_TIME: 1.0})
    frame = pd.DataFrame(lines).astype({"steps": "Int64"})
    shown: list[Column] = [Column(METHOD), Column("steps"), Number(STEP_TIME, ".2f"), Spread("perplexity")]
    return Table(frame, [*shown, Nats(ABOVE), Nats(BELOW)])


def _line(measured: Losses, method: str) -> dict[str, Any]:
    line: dict[str, Any] = {METHOD: method, **mean_and_sd("perplexity", measured.perplexities(method))}
    return line if method == "full" else line | estimate_fields(ABOVE, measured.lead("full", method))
