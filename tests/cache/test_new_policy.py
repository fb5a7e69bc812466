"""A new policy is a file (`docs/extending.md` shows this one): everything that works with policies finds it.

Nothing else has to name it.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from transformers import PreTrainedModel

from cache_contract import check_contract
from cache_simulation import Head, compare, compare_turns, tokens
from files_in_texts import module_in_text
from sinklora.cache.policies import POLICIES, CachePolicy, make_policy, policy_key
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.hf.budget_cache import BudgetCache
from sinklora.reproduction.cache.figures import budget_figure, kept_share
from sinklora.reproduction.cache.real_model import compared
from sinklora.reproduction.cache.study import policies, policies_of_figure_6
from sinklora.reproduction.cache.tables import summary, table
from sinklora.reproduction.cache.verdict import notes_on_ours
from tiny_models import tiny_model

PUBLISHED = ["expected_attention", "h2o", "local", "snapkv", "streaming", "tova"]


def length_of_value(head: Head, position: int, now: int, policy: Any) -> float:
    """By hand, what `Lengths` says."""
    return float(head.values[position].square().sum().sqrt())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa").double()


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[CachePolicy]]:
    """The policy that the docs show, from its file, as long as this module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        module = module_in_text("sinklora/cache/longest.py", tmp_path_factory.mktemp("added"), patch)
        yield module.LongestValues
    del POLICIES["longest"]


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.bounded])
def test_every_policy_keeps_the_contract(model: PreTrainedModel, name: str) -> None:
    check_contract(model, name)


def test_a_new_policy_keeps_the_contract_and_equals_its_simulation(
    model: PreTrainedModel, added: type[CachePolicy]
) -> None:
    check_contract(model, "longest")
    for chunk in (None, 3):
        compare(model, added(8), [17, *[1] * 6], chunk, score=length_of_value)
    compare_turns(model, added(8), [[9, 2], [1, 1], [0, 5], [1, 1]], "left", score=length_of_value)


def test_a_new_policy_generates(model: PreTrainedModel, added: type[CachePolicy]) -> None:
    cache = BudgetCache(model, added(0.5))
    written = model.generate(tokens(2, 12), past_key_values=cache, max_new_tokens=5, do_sample=False)
    assert written.shape == (2, 17) and cache.kept_positions(0).shape[-1] == 6
    assert kept_share(model, tokens(1, 12)[0].tolist(), added(0.5)).sum(-1).tolist() == pytest.approx([6, 6])


def test_a_new_policy_is_in_the_study_and_its_figure(added: type[CachePolicy]) -> None:
    chosen = policies(0.1)
    assert list(chosen) == [*PUBLISHED, "novelty", "replay", "longest"]
    assert chosen["longest"] == added(0.1)
    in_figure_6 = ["h2o", "local", "streaming", "novelty", "replay", "longest"]
    assert list(policies_of_figure_6(0.1)) == in_figure_6
    assert list(compared(0.1)) == [name for name in in_figure_6 if name != "novelty"], "of a real model"
    rows = pd.DataFrame(
        [
            {"measure": "perplexity", "policy": name, "budget": budget, "item": str(item), "value": value}
            for number, name in enumerate(["full", *chosen])
            for budget in ((1.0,) if name == "full" else (0.1, 0.2))
            for item, value in enumerate((1.0 + number / 10, 1.2 + number / 10))
        ]
    ).assign(split="some")
    assert "longest" in set(summary(rows).policy) and "longest" in set(table(rows, "perplexity").frame.policy)
    said = notes_on_ours(rows)
    assert "novelty, not published: " in said and "longest, not published: worse than" in said
    figure = budget_figure(rows)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:6] == ["full cache", "H2O", "Local", "StreamingLLM", "Novelty", "Replay (ours)"]
    assert labels[6:] == ["Expected Attention", "SnapKV", "TOVA", "longest"]
    looks = {
        (to_rgb(line.lines[0].get_color()), line.lines[0].get_linestyle(), line.lines[0].get_marker())
        for line in figure.axes[0].containers
    }
    assert len(looks) == 9  # no two policies look alike


def test_a_new_policy_answers_the_harness(added: type[CachePolicy]) -> None:
    reader = LMEvalModel("data/base", kv="longest", budget="0.3", device="cpu", dtype="float32")
    assert reader.policy == added(0.3) == make_policy("longest", 0.3)
    assert policy_key(reader.policy) == {"kind": "LongestValues", "budget": 0.3}
    [(likely, _)] = reader._loglikelihood_tokens([(None, list(range(5, 25)), [7, 8])], disable_tqdm=True)
    assert torch.isfinite(torch.tensor(likely))
