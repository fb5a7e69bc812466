"""Predictions of one model under one cache for many data sets, in a folder that knows its settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.cache.policies import make_policy, parse_budget
from sinklora.evaluate.longbench.metrics import check_references
from sinklora.evaluate.longbench.predictions import as_it_is, chat_format, check_request, predict
from sinklora.evaluate.longbench.records import Record, load_records
from sinklora.evaluate.longbench.tasks import DATASETS, SMALL, scored_as
from sinklora.hf.budget_cache import cache_factory
from sinklora.hf.device import default_device
from sinklora.hf.model_names import check_model_name
from sinklora.pretrained.catalogue import packaged_model, packaged_record
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import dtype_of
from sinklora.records.files import write_json


@dataclass(frozen=True)
class PredictionRun:
    """What to predict: `model` and `data` are folders or names on the hub, `model` also a packaged model's
    name, `out` a folder for predictions.

    `max_length` in tokens of prompt; `kv` and `budget` name the cache, `budget` also as text ("0.2", "20%",
    "512", "" for none); `datasets` None: all that `data` has; `limit`: records of each.
    """

    model: str
    data: str
    out: Path
    max_length: int
    kv: str = "full"
    budget: str | int | float | None = None
    datasets: Sequence[str] | None = None
    limit: int | None = None
    chat: bool = False

    def write(self) -> None:
        """Write the predictions that are not there yet, after everything that was asked for has been checked.

        Raises ValueError or FileNotFoundError, before the model is loaded, for what cannot be predicted, and
        where `out` holds predictions made with other settings: a continued file would mix two models.
        """
        settings = self._settings()
        sets = {name: self._records(name) for name in self.datasets or self._datasets_in_data()}
        self._check_settings(settings)
        check_model_name(self.model, "model")
        path, device = model_path(self.model), default_device()
        tokenizer = AutoTokenizer.from_pretrained(path)
        prompt_format = chat_format(tokenizer) if self.chat else as_it_is
        network = AutoModelForCausalLM.from_pretrained(path, dtype=self._dtype(), device_map=device)
        factory = cache_factory(network, self.kv, settings["budget"])
        self.out.mkdir(parents=True, exist_ok=True)
        if not self._settings_file.is_file():
            write_json(self._settings_file, settings)
        for name, records in sets.items():
            predict(
                network,
                tokenizer,
                records,
                name,
                max_length=self.max_length,
                out=self.out / f"{name}.jsonl",
                cache_factory=factory,
                prompt_format=prompt_format,
                limit=self.limit,
            )

    @property
    def _settings_file(self) -> Path:
        return self.out / "settings.json"

    def _settings(self) -> dict[str, Any]:
        """What all predictions of a folder have in common."""
        budget = parse_budget(self.budget)
        make_policy(self.kv, budget)
        common = {"model": self.model, "max_length": self.max_length, "kv": self.kv}
        common |= {"budget": budget, "chat": self.chat, **packaged_record(self.model)}
        if packaged_model(self.model) is None:
            return common
        # The machine's choice: a folder that is continued on another one would mix two.
        return {**common, "dtype": str(self._dtype()).removeprefix("torch.")}

    def _dtype(self) -> Any:
        return dtype_of(self.model, default_device(), "auto")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        if self._settings_file.is_file():
            kept = json.loads(self._settings_file.read_text(encoding="utf-8"))
            known = {name: value for name, value in settings.items() if name != "dtype" or name in kept}
            if kept != known:  # folders were once begun without the dtype
                raise ValueError(
                    f"out: {self._settings_file} says {kept}, this run {settings}; use another folder"
                )

    def _datasets_in_data(self) -> Sequence[str]:
        """Every data set that a folder has a file of; of a name on the hub, all 21."""
        if not Path(self.data).is_dir():
            return list(DATASETS)
        present = [name for name in (*DATASETS, *SMALL) if (Path(self.data) / f"{name}.jsonl").is_file()]
        if not present:
            raise ValueError(f"data={self.data!r} has no files named <data set>.jsonl")
        return present

    def _records(self, name: str) -> list[Record]:
        """The records of a data set, all checked: a fault would else be met after hours of predictions."""
        scored_as(name)
        records = load_records(self.data, name)
        check_request(records, name, self.max_length, limit=self.limit)
        for number, record in enumerate(records, 1):
            check_references(name, record.answers, f"{self.data}, {name}, record {number}: 'answers'")
        return records
