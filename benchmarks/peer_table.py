"""The two tables of peers.py: answers beside dense references, and costs as ratios to ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peer_cases import OURS, Case
from peer_references import DenseModel, held, loss, mask_of, share_as_defined, window_tokens
from peer_sides.subject import Setting
from safetensors.torch import load_file
from torch import Tensor

from sinklora.evaluate.timing import median_ratio
from sinklora.records.tables import Column, Number, Table

NOTHING = float("nan")
NONE = [NOTHING, NOTHING]  # wall and processor

REFERENCES = {
    "full": "full attention",
    "held": "attention over the tokens that it holds",
    "window": "attention within the window",
    "s2": "S² without wrap-around",
    "s2_wrapped": "S², Algorithm 1",
    "sf": "SF-Attn",
}


def agreement(
    model: str,
    cases: Sequence[Case],
    answers: Mapping[str, dict[str, Any]],
    versions: Mapping[str, Mapping[str, str]],
    setting: Setting,
) -> pd.DataFrame:
    """A row for each case: what it computes, beside the dense reference, or why it could not be run."""
    judge, rows = Judge(setting), []
    for case in cases:
        known = versions.get(case.environment, {})
        answer = answers[case.name]
        row: dict[str, Any] = {
            "model": Path(model).name,
            "peer": case.peer,
            "asked": case.what,
            "versions": ", ".join(f"{name} {known[name]}" for name in case.packages if name in known),
            "dense reference": REFERENCES[case.reference],
            "kept as defined (%)": NOTHING,
            "largest difference": NOTHING,
            "holds after the prompt": None,
            "holds at the end": None,
            "gradient from the future": NOTHING,
            "cannot be run because": answer.get("failed"),
        }
        if "facts" in answer:
            row |= judge.judged(case, answer["facts"])
        rows.append(row)
    table = pd.DataFrame(rows)
    counts = ["holds after the prompt", "holds at the end"]
    return table.astype(dict.fromkeys(counts, "Int64"))


class Judge:
    """Compares answers with dense references on the setting's model and text."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.ids = setting, setting.ids()
        self.total = int(setting.budget * setting.prompt + 1e-9)
        self.dense = DenseModel(setting.model)
        self.known: dict[tuple[str, int], Tensor] = {}
        self.received = self.dense.received(self.ids[:, : setting.prompt], window_tokens(self.total))

    def judged(self, case: Case, facts: dict[str, Any]) -> dict[str, Any]:
        """The cells of a case that was run."""
        if case.kind == "steps":
            ids = self.ids[:, : self.setting.prompt]
            return {"largest difference": abs(facts["loss"] - loss(self._expected(case, ids), ids))}
        tensors = load_file(Path(self.setting.folder) / f"{case.name}.safetensors")
        if case.kind == "operators":
            ids = self.ids[:, : self.setting.prompt]
            return {
                "largest difference": largest(tensors["logits"], self._expected(case, ids)),
                "gradient from the future": facts["future"],
            }
        return self._judged_cache(case, tensors, facts["held"])

    def _judged_cache(self, case: Case, tensors: dict[str, Tensor], counts: list[int]) -> dict[str, Any]:
        if case.reference == "held":
            groups = self.dense.heads // self.dense.kv_heads
            expected = self.dense.logits(self.ids, held(tensors["seen"], groups))
        else:
            expected = self._expected(case, self.ids)
        cells: dict[str, Any] = {
            "largest difference": largest(tensors["logits"], expected[self.setting.prompt :]),
            "holds after the prompt": counts[0],
            "holds at the end": counts[1],
        }
        if case.keeps:
            kept = tensors["seen"][0, ..., : self.setting.prompt]
            cells["kept as defined (%)"] = 100 * share_as_defined(kept, self.received, case.keeps)
        return cells

    def _expected(self, case: Case, ids: Tensor) -> Tensor:
        """Logits by the mask that the case names, computed once."""
        tokens = ids.shape[1]
        if (case.reference, tokens) not in self.known:
            mask = mask_of(case.reference, self.dense.heads, tokens, self.total)
            self.known[case.reference, tokens] = self.dense.logits(ids, mask)
        return self.known[case.reference, tokens]


def shown(name: str, frame: pd.DataFrame) -> Table:
    """A table as a reader sees it."""
    forms = {"largest difference": ".1e", "gradient from the future": ".3f", "kept as defined (%)": ".1f"}
    if name == "cost":
        forms = {heading: ".2f" for heading in frame.columns if frame[heading].dtype == float}
    columns = [Number(str(c), forms[c]) if c in forms else Column(str(c)) for c in frame.columns]
    return Table(frame, columns)


def largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors of logits."""
    return float((found.to(torch.float32) - expected).abs().max())


def cost(model: str, cases: Sequence[Case], rounds: Sequence[Mapping[str, dict[str, Any]]]) -> pd.DataFrame:
    """A row for each case that was run: seconds and peak memory as ratios to the case of ours beside it."""
    own = {(case.kind, case.what): case for case in cases if case.peer == OURS}
    rows = []
    for case in cases:
        base = own.get((case.kind, case.beside))
        if base is None or "laps" not in rounds[0][case.name] or "laps" not in rounds[0][base.name]:
            continue
        row: dict[str, Any] = {
            "model": Path(model).name,
            "peer": case.peer,
            "asked": case.what,
            "beside ours": case.beside,
        }
        for part in ("prompt", "decoding", "step"):
            for clock, name in enumerate(("times ours", "processor")):
                row[f"{part}, {name}"] = _ratio(case, base, part, clock, rounds)
        peaks = [rounds[0][one.name].get("peak", NOTHING) for one in (case, base)]
        rows.append({**row, "peak, times ours": peaks[0] / peaks[1], "peak (MiB)": peaks[0] / 2**20})
    return pd.DataFrame(rows)


def _ratio(
    case: Case, base: Case, part: str, clock: int, rounds: Sequence[Mapping[str, dict[str, Any]]]
) -> float:
    laps = [[answers[one.name]["laps"].get(part, NONE)[clock] for answers in rounds] for one in (case, base)]
    return median_ratio(*laps)
