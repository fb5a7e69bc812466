"""A training step by two checkouts: each takes its own, old ones too, and ratios are of the same round."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import training_against
from training_against import AgainstOptions
from transformers import LlamaConfig


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shape")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}
    LlamaConfig(**sizes, num_hidden_layers=1, use_cache=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose steps lie where they once lay and know no `fused`; importing them leaves a file."""
    folder = tmp_path_factory.mktemp("checkouts") / "older"
    here, ignored = training_against.HERE / "sinklora", shutil.ignore_patterns("__pycache__")
    shutil.copytree(here, folder / "sinklora", ignore=ignored)
    evaluate = folder / "sinklora" / "evaluate"
    (evaluate / "training_step.py").unlink()
    steps = (evaluate / "step_spec.py").rename(evaluate / "efficiency.py")
    source = steps.read_text(encoding="utf-8").replace("    fused: bool = False\n", "    fused = False\n")
    steps.write_text(f"{source}\n\nopen('taken', 'a').write('x')\n", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_every_checkout_takes_its_own_step_once(shape: Path, older: Path, tmp_path: Path) -> None:
    sizes = {"contexts": (64,), "threads": 1, "patterns": ("sf",), "repeats": 1}
    folders = {"against": older, "model": str(shape), "runs": tmp_path / "runs", "out": tmp_path}
    for _ in range(2):  # the second time from what was kept
        training_against.main(AgainstOptions(**sizes, **folders))
        assert (older / "taken").read_text() == "x"
    table = pd.read_csv(tmp_path / "training_against.csv").set_index(["checkout", "pattern"])
    assert list(table.index) == [("this", "sf"), ("older", "sf")]
    assert (table.seconds > 0).all()
    assert {path.suffix for path in tmp_path.glob("training_against.*")} == {".md", ".csv", ".json"}


def test_ratios_are_of_the_same_round(shape: Path, older: Path) -> None:
    options = AgainstOptions(against=older, model=str(shape))
    seconds = {("this", "sf"): [2.0, 4.0, 3.0], ("this", "full"): [4.0, 4.0, 9.0]}
    seconds |= {("other", "sf"): [4.0, 12.0, 4.5], ("other", "full"): [4.0, 24.0, 9.0]}
    table = training_against.make_table(options, {64: seconds})
    assert table["time, ratio to sf"].tolist() == [1, 2, 1, 2]  # of 2, 1, 3 and of 1, 2, 2
    assert table["time, ratio to this checkout"].tolist() == [1, 1, 2, 1]  # of 2, 3, 1.5 and of 1, 6, 1
    ideal = table["ideal ratio (FLOPs)"]
    assert ideal[0] == ideal[2] == 1 and ideal[1] == ideal[3] > 1
    assert table["off the ideal (%)"][1] == pytest.approx(100 * (2 / ideal[1] - 1))


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"against='.*': expected the folder of a checkout"):
        AgainstOptions(against=tmp_path)


@pytest.mark.slow
def test_a_step_that_fails_is_told_with_its_last_words(older: Path) -> None:
    with pytest.raises(RuntimeError, match=r"in older failed:[\s\S]*shape='no such'"):
        training_against.time_steps(older, {"shape": "no such"}, 1, 1)
