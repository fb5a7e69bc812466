"""The benchmark of training steps: what fits the limit is measured, the table is written."""

from pathlib import Path

import pandas as pd
import pytest
import training
from transformers import LlamaConfig

from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.reproduction.efficiency.study import BASELINE, SF, STEPS


@pytest.mark.slow
def test_it_measures_what_fits_and_writes_its_table(tmp_path: Path) -> None:
    shape = tmp_path / "shape"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}
    LlamaConfig(**sizes, num_hidden_layers=1, use_cache=False).save_pretrained(shape)
    full, sf = (estimate(StepSpec(str(shape), 64, name)).peak_bytes for name in ("full", "sf"))
    assert full < sf, "too little else for the windows' copies not to count"
    limit = (full + sf) / 2 / 2**30
    options = {"shape": str(shape), "contexts": (64,), "limit_gib": limit, "repeats": 1, "out": tmp_path}
    training.main(training.TrainingOptions(**options, methods=("lora", "lora_sf"), runs=tmp_path / "runs"))
    table = pd.read_csv(tmp_path / "training.csv").set_index("method")
    assert table.loc[BASELINE, "seconds"] > 0 and table.loc[BASELINE, "peak (GiB)"] > 0
    assert pd.isna(table.loc[SF, "seconds"]) and table.loc[SF, "predicted (GiB)"] > limit
    assert "ideal ratio (FLOPs)" in (tmp_path / "training.md").read_text(encoding="utf-8")
    assert {path.suffix for path in tmp_path.glob("training.*")} == {".md", ".csv", ".json"}


def test_every_method_can_be_asked_for() -> None:
    assert sorted(training.METHODS.values()) == sorted(STEPS)
