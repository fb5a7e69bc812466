"""Table 5 on a real model: ratios by hand, processes of their own, and what is measured once."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from sinklora.evaluate.generation_cost import OWN
from sinklora.evaluate.generation_spec import rounds_as_json
from sinklora.evaluate.own_process import in_own_process
from sinklora.records.tables import markdown
from sinklora.reproduction.cache.generation_study import (
    GenerationStudy,
    generation_table,
    generation_verdict,
    measure_generation,
)


def rows() -> pd.DataFrame:
    """Three rounds, the last of which a busy machine makes twice as slow."""
    speeds = {OWN: (2.0, 10.0), "full": (2.5, 12.0), "h2o": (3.0, 15.0), "local": (2.0, 20.0)}
    return pd.DataFrame(
        [
            {
                "batch": 8,
                "prompt": 2048,
                "cache": cache,
                "round": number,
                "prompt (s)": seconds * slow,
                "decoded tokens/s": speed / slow,
                "cache (bytes)": 3 * 2**20,
                "peak (bytes)": 7 * 2**20,
            }
            for cache, (seconds, speed) in speeds.items()
            for number, slow in enumerate((1.0, 1.1, 2.0))
        ]
    )


def test_medians_ranges_and_ratios_of_the_same_round() -> None:
    shown = generation_table(rows(), 30)
    line = shown.frame.set_index("cache").loc["h2o"]
    assert (line["prompt (s)"], line["prompt (s) (low)"], line["prompt (s) (high)"]) == (
        3.3000000000000003,
        3,
        6,
    )
    assert line["decoded tokens/s (low)"] == 7.5
    for heading, ratio in (("prompt, ratio", 1.5), ("decoding, times faster", 1.5)):
        for name in (heading, f"{heading} (low)", f"{heading} (high)"):
            assert line[name] == pytest.approx(ratio), "a slow round slows both"
    assert "13.64 (7.50 to 15.00)" in markdown(shown)
    # 3 + 8 * 30 / 15 seconds beside 2 + 8 * 30 / 10.
    assert line["prompt and tokens (s) (low)"] == pytest.approx(19)
    assert line["whole, ratio"] == pytest.approx(19 / 26)
    assert (line["cache (MiB)"], line["peak (MiB)"]) == (3, 7)


def test_the_verdict_names_the_price_of_choosing() -> None:
    assert generation_verdict(rows()) == (
        "8 × 2048: H2O's prompt takes 1.20 times as long as with a full cache of the same code (1.50: "
        "transformers' cache), it decodes 1.25 times as fast (1.50), and 0.75 times as fast as Local; "
        "4 tokens a row pay for it."  # 0.5 seconds beside 8 / 12 - 8 / 15 a token
    )


@pytest.mark.parametrize(
    ("h2o", "said"),
    [((2.0, 15.0), "it is ahead from the first token on."), ((3.0, 12.0), "decoding does not pay for it.")],
)
def test_the_verdict_says_where_nothing_is_to_be_paid_and_where_nothing_pays(
    h2o: tuple[float, float], said: str
) -> None:
    own = rows()
    for column, value in zip(("prompt (s)", "decoded tokens/s"), h2o, strict=True):
        own.loc[own.cache == "h2o", column] = value
    own.loc[own.cache == "full", ["prompt (s)", "decoded tokens/s"]] = (2.5, 12.0)
    assert generation_verdict(own).endswith(f"Local; {said}")


@pytest.mark.slow
def test_a_setting_is_measured_in_processes_of_its_own_and_once(tmp_path: Path) -> None:
    study = GenerationStudy("data/base", settings=((2, 400),), policies=("h2o",), new_tokens=3, rounds=2)
    found = measure_generation(study, runs=tmp_path, progress=False)
    assert found.cache.tolist() == [OWN, OWN, "h2o", "h2o"]
    assert found["round"].tolist() == [0, 1, 0, 1]
    # Keys and values, 4 layers of 2 rows: float32 of 256 a token, 403 tokens with transformers' cache.
    held = found.set_index("cache")["cache (bytes)"]
    assert held[OWN].iloc[0] > held["h2o"].iloc[0] > 0
    assert (found["peak (bytes)"] > 0).all() and found["peak (bytes)"].nunique() <= 2
    made = sorted(tmp_path.glob("generation-*"))
    assert len(made) == 2, "times, and peaks"
    assert sorted(run["run"] for run in found.attrs["runs"]) == [folder.name for folder in made]
    again = measure_generation(study, runs=tmp_path, progress=False)
    pd.testing.assert_frame_equal(again, found)


def test_every_policy_has_its_turn_in_each_round() -> None:
    study = GenerationStudy("data/base", settings=((1, 30),), new_tokens=2, rounds=1)
    spec = study.spec(1, 30)
    found = rounds_as_json(asdict(spec), 1)
    assert [row["cache"] for row in found] == [OWN, "full", "h2o", "streaming", "local", "replay"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policies": ("h2o", "nobody")}, "policies.*nobody"),
        ({"budget": -0.5}, "budget"),
        ({"settings": ((0, 40),)}, "batch=0"),
        ({"rounds": 0}, "rounds=0"),
    ],
)
def test_wrong_studies_are_refused_before_anything_runs(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GenerationStudy("data/base", **changes)  # type: ignore[arg-type]


def test_a_process_that_fails_is_named_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)the sum failed:.*ZeroDivisionError"):
        in_own_process("operator:truediv", 1, 0, what="the sum")
    assert in_own_process("operator:add", 1, 2, what="the sum") == 3
