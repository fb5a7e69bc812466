"""The benchmarks' ratios: to the first row of a length, and the right way up."""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import kv_cache_operators
import pandas as pd
import pytest
import real_model
import real_model_caches
import real_model_compiled
from attention_cases import AttentionOptions, make_cases
from kv_cache_options import CacheOptions
from real_model_options import STATIC, RealModelOptions
from typer.testing import CliRunner

import attention
from sinklora.evaluate.memory import KEEP_MEMORY


def test_patterns_are_compared_with_full_attention_of_the_same_round() -> None:
    options = AttentionOptions(lengths=(64,), heads=2, head_size=8, device="cpu")
    count = len(make_cases(64, options))
    times = [{"wall": [2.0, 4.0, 1.0], "processor": [1.0, 1.0, 1.0]}]
    times += [{"wall": [6.0, 8.0, 5.0], "processor": [2.0, 4.0, 3.0]}] * (count - 1)
    peaks = [{"peak": 2 * 2**20}] + [{"peak": 3 * 2**20}] * (count - 1)
    table = attention.make_table(options, times, peaks)
    assert table.pattern[0] == "full causal SDPA" and len(table) == count
    full, other = table.iloc[0], table.iloc[1]
    assert (full.time, full.cpu, full.memory) == (1, 1, 1)
    assert (other.time, other.cpu, other.memory) == (3, 3, 1.5)  # medians of 3, 2, 5 and of 2, 4, 3
    assert (other.seconds, other["peak MiB"]) == (6, 3)


def test_caches_are_compared_with_the_first_of_each_group() -> None:
    small = {"prompts": (16,), "budgets": (0.5,), "steps": 2, "repeats": 1, "batch": 1, "heads": 2}
    options = CacheOptions(**small, head_size=8, device="cpu", dtype="float32")
    table = kv_cache_operators.operators(options)
    for _, group in table.groupby("what", sort=False):
        # One round: the ratio of the times is the ratio.
        assert group.ratio.tolist() == pytest.approx((group.seconds / group.seconds.iloc[0]).tolist())
        assert group.ratio.nunique() > 1


def test_the_real_models_benchmark_starts_anew_with_settings_of_the_c_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ["benchmarks/real_model.py", "--quick", "--model", "data/base"]
    started: list[tuple[str, list[str], dict[str, str]]] = []

    def start(*what: Any) -> NoReturn:
        started.append(what)
        raise SystemExit

    monkeypatch.setattr(os, "execve", start)
    monkeypatch.setenv("OF_THE_CALLER", "1")
    for name in KEEP_MEMORY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", *arguments])
    with pytest.raises(SystemExit):
        real_model.main(RealModelOptions(model="data/base"))
    [(program, command, environment)] = started
    assert (program, command) == (sys.executable, [sys.executable, *arguments])
    assert environment.items() >= {**KEEP_MEMORY, "OF_THE_CALLER": "1"}.items()


def test_settings_with_too_many_tokens_are_left_out() -> None:
    options = RealModelOptions(prompts=(2048, 7936), batches=(1, 8), most=16384)
    assert options.settings == [(1, 2048), (1, 7936), (8, 2048)]
    assert len(RealModelOptions(prompts=(2048, 7936), batches=(1, 8)).settings) == 4
    with pytest.raises(ValueError, match="most=2047: expected at least 2048"):
        RealModelOptions(prompts=(2048, 7936), batches=(1, 8), most=2047)


def test_the_real_models_ratios_are_the_right_way_up(monkeypatch: pytest.MonkeyPatch) -> None:
    options = RealModelOptions(
        model="data/base",
        dtype="float32",
        device="cpu",
        batches=(2,),
        prompts=(64,),
        steps=8,
        caches=("static", "h2o"),
    )
    seconds = {"DynamicCache": [1.0, 4.0], STATIC: [1.0, 4.0], "H2O": [3.0, 2.0], "Local": [2.0, 1.0]}
    seconds |= {"H2O, compiled": [1.0, 0.5], "Local, compiled": [1.0, 1.0]}

    def given(_: object, compute: Any, *arguments: Any) -> object:
        if compute is real_model_caches.measure_peak:
            return {"DynamicCache": 4}.get(arguments[-1], 1) * 2**20
        return (
            [5.0, 6.0]
            if compute is real_model_caches.count_operators
            else {n: [s] for n, s in seconds.items()}
        )

    for module in (real_model_caches, real_model_compiled):
        monkeypatch.setattr(module, "cell", given)
    line = real_model_caches.caches(options).set_index("cache").loc["H2O"]
    ratios = ["prompt, ratio", "times DynamicCache", "times Local", "peak, ratio", "decoded tokens/s"]
    assert line[ratios].tolist() == [3, 2, 0.5, 0.25, 8], "2 rows of 8 tokens in 2 seconds"
    assert line[["tokens/s (least)", "tokens/s (most)"]].tolist() == [8, 8]
    line = real_model_compiled.compiled(options).set_index("cache").loc["H2O, compiled"]
    assert line[["times eager", "times DynamicCache", "decoded tokens/s"]].tolist() == [4, 8, 32]


@pytest.mark.slow
def test_the_real_models_benchmark_is_kept_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    for name, value in KEEP_MEMORY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the benchmark sets for the processes it starts
    arguments = ["--quick", "--model", "data/base", "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    arguments += ["--only", "caches", "--caches", "h2o,static"]
    arguments += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    for _ in range(2):
        done = CliRunner().invoke(real_model.application, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        written.append((tmp_path / "out" / "real_model_caches.csv").read_text())
    assert written[0] == written[1], "measured twice"
    table = pd.read_csv(tmp_path / "out" / "real_model_caches.csv").set_index("cache")
    assert list(table.index) == ["DynamicCache", STATIC, "H2O", "Local"]
    assert (
        table.loc["DynamicCache", ["prompt, ratio", "times DynamicCache", "peak, ratio"]].tolist() == [1] * 3
    )
    assert table["prompt, ratio"].isna().sum() == 1
    assert (table["operators a layer, step"] >= 36).all()
