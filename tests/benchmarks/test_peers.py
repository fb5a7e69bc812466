"""Peers side by side: references by hand, real answers beside them, environments, reasons, ratios."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import peers
import pytest
import torch
from peer_cases import CASES, OURS, Case
from peer_environments import ENVIRONMENTS, Environment, NotInstalledError, interpreter
from peer_references import KEEPS, DenseModel, Received, causal, held, share_as_defined, shifted_windows
from peer_sides import flash_stand_in
from peer_sides.kvpress_presses import nearest
from peer_sides.process import measure_cases, versions
from peer_sides.subject import Setting
from peer_table import agreement, cost, shown
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from helpers import assert_close
from wheels import write_wheel

HERE = [case for case in CASES if case.environment == "today"]
PROMPT, STEPS = 64, 3


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("peers")
    model = peers.write_inputs("data/base", folder, PROMPT, STEPS)
    return Setting(str(model), str(folder), PROMPT, STEPS, budget=0.2, threads=1)


@pytest.fixture(scope="module")
def answers(setting: Setting) -> dict[str, dict[str, Any]]:
    """What every case answers that needs no other environment."""
    return measure_cases(setting, {case.name: case.request() for case in HERE}, ["answers"])


@pytest.fixture(scope="module")
def table(setting: Setting, answers: dict[str, dict[str, Any]]) -> pd.DataFrame:
    known = {"today": versions({case.name: case.request() for case in HERE})}
    return agreement("data/base", HERE, answers, known, setting).set_index(["peer", "asked"])


def test_ours_and_exact_caches_agree_with_dense_references(table: pd.DataFrame) -> None:
    exact = [(OURS, case.what) for case in HERE if case.peer == OURS]
    exact += [("transformers", name) for name in ("DynamicCache", "StaticCache", "sliding window")]
    assert len(exact) >= 10 and (table.loc[exact, "largest difference"] < 1e-4).all()
    kept = table["kept as defined (%)"].dropna()
    assert len(kept) == 4 and (kept == 100).all()


def test_a_cache_of_few_bits_differs(table: pd.DataFrame) -> None:
    assert table.loc[("transformers", "QuantizedCache, fp8"), "largest difference"] > 1e-3


def test_what_caches_hold_is_counted(table: pd.DataFrame) -> None:
    counts = table[["holds after the prompt", "holds at the end"]]
    assert counts.loc[(OURS, "H2O")].tolist() == [12, 12]
    assert counts.loc[("transformers", "DynamicCache")].tolist() == [PROMPT, PROMPT + STEPS]


def test_only_the_wrapped_pattern_has_gradients_from_the_future(table: pd.DataFrame) -> None:
    future = table["gradient from the future"]
    assert future[OURS, "S²"] == 0 < 0.01 < future[OURS, "S², wrapped"]


def test_who_cannot_be_run_is_told_with_the_reason(table: pd.DataFrame) -> None:
    reasons = table["cannot be run because"].dropna()
    assert list(reasons.index) == [("transformers", "SinkCache")]
    assert reasons.iloc[0].startswith("transformers 5.") and "no SinkCache any more" in reasons.iloc[0]
    assert table["versions"].str.contains("transformers 5.").all()


def test_whatever_a_side_raises_is_its_answer(setting: Setting) -> None:
    asked = {"side": "caches_here", "cache": "QuantizedCache", "backend": "no such"}
    found = measure_cases(setting, {"odd": asked}, ["answers"])
    assert found == {"odd": {"failed": "ValueError: Unknown quantization backend `no such`"}}


def test_another_policy_is_not_taken_for_the_defined_one(setting: Setting) -> None:
    model = DenseModel(setting.model)
    received = model.received(setting.ids()[:, :PROMPT], 6)
    kept = torch.zeros(len(received), model.kv_heads, PROMPT, dtype=torch.bool)
    kept[..., -12:] = True
    assert share_as_defined(kept, received, "local") == 1
    assert 0.5 <= share_as_defined(kept, received, "h2o") < 1


def test_the_dense_model_is_the_model(setting: Setting) -> None:
    ids = setting.ids()
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(setting.model)(ids).logits[0]
    assert_close(DenseModel(setting.model).logits(ids, causal(ids.shape[1])), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("keeps", "expected"),
    [
        ("h2o", {0, 1, 6, 7}),  # two newest, two that received most
        ("averaged", {1, 3, 6, 7}),  # by 7, 5, 2 and 1 queries
        ("snapkv", {2, 3, 6, 7}),  # two newest, and where five neighbours sum up most
        ("streaming", {0, 1, 2, 3}),
        ("local", {4, 5, 6, 7}),
    ],
)
def test_what_stays_by_hand(keeps: str, expected: set[int]) -> None:
    from_all = [1.0, 1.4, 0.1, 0.9, 0.2, 0.1, 0.8, 0.5]
    from_last = [0.0, 0.3, 0.1, 0.1, 0.4, 0.0, 0.0, 0.0]
    assert KEEPS[keeps](from_all, from_last, 4) == expected


def test_the_share_is_over_all_heads_and_layers() -> None:
    one = Received(torch.tensor([[3.0, 1, 0, 0], [1, 3, 0, 0]]), torch.zeros(2, 4))
    # Right for the first head, half right for the other.
    kept = torch.tensor([[True, False, False, True]]).expand(2, 4)
    assert share_as_defined(kept[None], [one], "h2o") == 0.75


def test_windows_are_shifted_as_algorithm_1_does() -> None:
    wrapped, cut = (shifted_windows(2, 8, wrapped=w)(0).int().tolist() for w in (True, False))
    own = [[int(k <= q and k // 2 == q // 2) for k in range(8)] for q in range(8)]
    shifted = [[int(k <= q and (k + 1) // 2 == (q + 1) // 2) for k in range(8)] for q in range(8)]
    assert cut == [own, shifted]
    shifted[0][7] = 1  # the first token is behind the last in its window
    assert wrapped == [own, shifted]


def test_a_step_sees_what_was_held_and_itself() -> None:
    seen = torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    seen[:, :, :, 0] = seen[1, ..., 3] = True
    assert held(seen, 2)(0)[:, -2:].int().tolist() == [[[1, 0, 0, 1, 0], [1, 0, 0, 1, 1]]] * 2


def test_the_stand_in_attends_within_bounds() -> None:
    torch.manual_seed(0)
    rows, mask = torch.randn(2, 4, 3 * 2 * 8), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    tokens, indices, bounds, longest = flash_stand_in.unpad_input(rows, mask)
    assert bounds.tolist() == [0, 4, 6] and longest == 4
    padded = flash_stand_in.pad_input(tokens, indices, 2, 4)
    assert_close(padded, rows * mask[..., None], atol=0)
    qkv = tokens.view(6, 3, 2, 8)
    found = flash_stand_in.packed_attention(qkv, bounds, longest, 0.0, None, True)
    query, key, value = qkv.permute(1, 2, 0, 3)
    document = torch.tensor([0, 0, 0, 0, 1, 1])
    seen = causal(6)(0) & (document[:, None] == document)
    weights = (query @ key.mT * 8**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    assert_close(found, (weights @ value).transpose(0, 1), atol=1e-6)


def test_positions_are_told_by_the_keys() -> None:
    torch.manual_seed(0)
    keys = torch.randn(60, 4)
    assert nearest(keys[[7, 0, 59, 31] * 8], keys).tolist() == [7, 0, 59, 31] * 8


RELEASED = """
from transformers.models.llama import modeling_llama

def forward(self, hidden_states, attention_mask=None):
    return hidden_states, None

def replace_llama_attn(use_flash_attn=True):
    modeling_llama.LlamaAttention.forward = forward
"""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (RELEASED, r"transformers 5\.\S+ gives attention '\w+', which it does not take"),
        ("import flash_attn", "imports flash_attn at once"),
        (None, "name the folder of LongLoRA's release with --longlora"),
    ],
)
def test_a_release_that_is_not_written_for_this_transformers(
    source: str | None, reason: str, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaAttention, "forward", LlamaAttention.forward)  # and back
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "llama_attn_replace", raising=False)
    folder = None if source is None else str(tmp_path)
    (tmp_path / "llama_attn_replace.py").write_text(source or "")
    asked = {"side": "longlora_operator", "flash": False, "stand_in": False}
    own = Setting(setting.model, setting.folder, PROMPT, STEPS, 0.2, 1, longlora=folder)
    found = measure_cases(own, {"released": asked}, ["answers"])["released"]
    monkeypatch.delitem(sys.modules, "llama_attn_replace", raising=False)
    assert re.search(reason, found["failed"]), found


def test_an_environment_has_its_pins_and_the_rest_of_this_one(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, b"weights")
    environment = Environment("some-peer", (str(wheel),))
    python = interpreter(environment, tmp_path)
    source = "import importlib.util as u; print(*(bool(u.find_spec(x)) for x in ('tiny_weights', 'torch')))"
    done = subprocess.run([str(python), "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
    wheel.unlink()
    assert interpreter(environment, tmp_path) == python, "made again"


def test_an_environment_that_cannot_be_made_gives_the_reason_of_pip(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing-1.0-py3-none-any.whl")
    with pytest.raises(NotInstalledError, match=r"could not be installed: .*missing-1\.0"):
        interpreter(Environment("missing", (missing,)), tmp_path)


def test_every_pin_is_to_a_version_and_every_case_has_an_environment_and_ours_beside_it() -> None:
    assert all(pin.count("==") == 1 for e in ENVIRONMENTS.values() for pin in e.pins)
    own = {(case.kind, case.what) for case in CASES if case.peer == OURS}
    assert all(case.environment in ENVIRONMENTS and (case.kind, case.beside) in own for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)


def laps(*seconds: float) -> list[dict[str, Any]]:
    return [{"laps": {"step": [x, 1 / x]}, "peak": x * 2**20} for x in seconds]


def test_costs_are_ratios_of_the_same_round() -> None:
    def chosen(test: Callable[[Case], bool]) -> Case:
        return next(case for case in CASES if case.kind == "operators" and test(case))

    mine, theirs = chosen(lambda c: c.what == "S²"), chosen(lambda c: c.beside == "S²" and c.peer != OURS)
    broken = chosen(lambda c: c.environment == "longlora-today")
    rounds = [
        {mine.name: own, theirs.name: other, broken.name: {"failed": "so"}}
        for own, other in zip(laps(2, 4, 1), laps(8, 8, 3), strict=True)
    ]
    found = cost("some/base", [mine, theirs, broken], rounds)
    assert found["step, times ours"].tolist() == [1, 3]  # the median of 4, 2 and 3
    assert found["peak, times ours"].tolist() == [1, 4] and found["peak (MiB)"].tolist() == [2, 8]
    assert found["step, processor"].tolist() == [1, 1 / 3]
    assert found["prompt, times ours"].isna().all() and set(found["model"]) == {"base"}
    assert shown("cost", found).written().iloc[1].tolist()[-4:] == ["3.00", "0.33", "4.00", "8.00"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": 56}, "prompt=56: expected at least 64"),
        ({"prompt": 100}, "prompt=100: expected a multiple of 8"),
        ({"repeats": 0}, "repeats=0: expected at least 1"),
        ({"budget": 1.0}, "budget=1.0: expected less than 1"),
        ({"prompt": 64, "budget": 0.1}, "budget=0.1: expected at least 0.125"),
        ({"longlora": Path("benchmarks")}, "longlora='benchmarks': expected the folder of a clone"),
        ({"environments": ("todya",)}, "environments[0]='todya': expected one of today, kvpress"),
    ],
)
def test_bad_options_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        peers.PeerOptions(**wrong)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt \+ steps=80003: expected at most \d+"):
        peers.write_inputs("data/base", tmp_path, 80_000, 3)


@pytest.mark.slow
def test_tables_are_written_with_their_provenance(tmp_path: Path) -> None:
    few = {"models": ("data/base",), "only": ("operators",), "environments": ("today",)}
    peers.main(peers.PeerOptions(**few, prompt=64, steps=1, repeats=1, threads=1, out=tmp_path))
    costs = pd.read_csv(tmp_path / "peers_cost.csv")
    assert costs["asked"].tolist() == ["S²", "S², wrapped"]
    assert (costs["step, times ours"] == 1).all() and (costs["peak (MiB)"] > 0).all()
    assert (pd.read_csv(tmp_path / "peers_agreement.csv")["largest difference"] < 1e-4).all()
    assert {path.suffix for path in tmp_path.glob("peers_*")} == {".csv", ".md", ".tex", ".json"}
    record = json.loads((tmp_path / "peers_agreement.json").read_text())
    assert record["environments"] == {"today": []} and record["versions"]["transformers"]
