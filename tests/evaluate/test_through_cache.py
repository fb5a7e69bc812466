"""What a budget costs: against hand loops, on the trained base model; the study is measured once."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers import assert_close
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.sliding_window import Local
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.evaluate.generation_cost import cache_bound_model, cache_bytes, compare_caches
from sinklora.evaluate.through_cache import continuation_nll, pass_keys, recalled
from sinklora.hf.budget_cache import BudgetCache
from sinklora.reproduction.cache.figures import budget_figure, kept_share, kept_text_figure
from sinklora.reproduction.cache.study import CacheStudy, h2o_variants, measure, policies
from sinklora.reproduction.cache.tables import duels, summary, summary_table, table
from sinklora.reproduction.cache.verdict import cost_verdict, notes_on_ours, variants_verdict
from sinklora.train.retrieval_documents import NeedleDocument
from sinklora.train.sources import CorpusSpec

BASE = "data/base"


def documents(rows: int, length: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(3, 4000, (rows, length)))


def test_without_eviction_continuations_are_what_one_pass_over_all_tokens_gives(
    model: PreTrainedModel,
) -> None:
    texts = documents(3, 40)
    found = continuation_nll(
        model, texts, partial(BudgetCache, model, Full()), prompt_tokens=30, scored_tokens=8, progress=False
    )
    with torch.no_grad():
        logits = model(torch.tensor(np.stack(texts))[:, :38]).logits.log_softmax(-1)
    target = torch.tensor(np.stack(texts))[:, 30:38, None]
    assert_close(found, -logits[:, 29:37].gather(-1, target)[..., 0], atol=1e-3)


def test_a_batch_of_continuations_is_each_alone(model: PreTrainedModel) -> None:
    texts, lengths = documents(3, 40), {"prompt_tokens": 30, "scored_tokens": 8, "progress": False}
    make = partial(BudgetCache, model, H2O(10))
    together = continuation_nll(model, texts, make, **lengths)  # type: ignore[arg-type]
    alone = continuation_nll(model, texts, make, batch_size=1, **lengths)  # type: ignore[arg-type]
    assert_close(together, alone, atol=1e-4)


def test_a_planted_number_is_found_with_everything_kept_and_lost_with_the_newest_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    keys = [d for d in pass_keys(tokenizer, tokens=200, trials=6, seed=0)][:4]  # the key comes early
    for later in (False, True):
        ask = partial(recalled, model, tokenizer, keys, question_later=later, progress=False)
        assert ask(partial(BudgetCache, model, Full())).mean() >= 0.75
        assert not ask(partial(BudgetCache, model, Local(16))).any()


def test_answers_are_those_of_the_model_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    keys = pass_keys(tokenizer, tokens=120, trials=5, seed=1)
    together = recalled(model, tokenizer, keys, partial(BudgetCache, model, H2O(0.5)), progress=False)
    alone = [
        bool(recalled(model, tokenizer, [k], partial(BudgetCache, model, H2O(0.5)), progress=False)[0])
        for k in keys
    ]
    assert together.tolist() == alone


def test_a_tokenizer_without_padding_reads_documents_of_several_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    keys = [pass_keys(tokenizer, tokens=n, trials=2, seed=1)[0] for n in (96, 160)]
    expected = recalled(model, tokenizer, keys, partial(BudgetCache, model, Full()), progress=False)
    without = AutoTokenizer.from_pretrained(BASE)
    without.pad_token = None
    assert without.pad_token_id is None
    found = recalled(model, without, keys, partial(BudgetCache, model, Full()), progress=False)
    assert found.tolist() == expected.tolist() == [True, True]


def test_pass_keys_fit_sweep_depth_and_come_from_the_seed(tokenizer: PreTrainedTokenizerBase) -> None:
    keys = pass_keys(tokenizer, tokens=120, trials=5, seed=1)
    assert keys == pass_keys(tokenizer, tokens=120, trials=5, seed=1)
    assert keys != pass_keys(tokenizer, tokens=120, trials=5, seed=2)
    assert all(len(tokenizer(k.text)["input_ids"]) <= 120 for k in keys)
    places = [k.prompt.index(k.answer) for k in keys]
    assert places == sorted(places) and places[0] < places[-1]
    assert keys[0].context + keys[0].question == keys[0].prompt


def test_bad_input_is_named(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    make = partial(BudgetCache, model, Full())
    with pytest.raises(ValueError, match="each of 40 tokens"):
        continuation_nll(model, documents(1, 39), make, prompt_tokens=30, scored_tokens=10)
    with pytest.raises(ValueError, match="prompt_tokens=0"):
        continuation_nll(model, documents(1, 39), make, prompt_tokens=0, scored_tokens=10)
    mixed = [NeedleDocument("a b?", "1", "b?"), NeedleDocument("a b c d?", "1", "b c d?")]
    with pytest.raises(ValueError, match="one length"):
        recalled(model, tokenizer, mixed, make, progress=False)
    with pytest.raises(ValueError, match="seeds=\\(1, 1\\)"):
        CacheStudy(BASE, CorpusSpec(), seeds=(1, 1))
    with pytest.raises(ValueError, match="documents=0"):
        CacheStudy(BASE, CorpusSpec(), documents=0)


# --- the study ----------------------------------------------------------------------------------------------


def made_up(values: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    rows = pd.DataFrame(
        [
            {"measure": measure, "policy": policy, "budget": 0.1, "item": str(i), "value": value}
            for (measure, policy), column in values.items()
            for i, value in enumerate(column)
        ]
    )
    return rows.assign(split="5 to 5")


HAND = made_up(
    {
        ("perplexity", "h2o"): [2.0, 2.2],
        ("perplexity", "local"): [1.0, 1.2],
        ("perplexity", "streaming"): [3.0, 3.0],
        ("perplexity", "novelty"): [1.1, 1.1],
        **{(m, p): [0.0, 1.0] for m in ("recall", "recall, asked after eviction") for p in ("h2o", "local")},
        **{(m, "streaming"): [0.0, 0.0] for m in ("recall", "recall, asked after eviction")},
        **{(m, "novelty"): [1.0, 1.0] for m in ("recall", "recall, asked after eviction")},
    }
)


def test_the_summary_by_hand() -> None:
    found = summary(HAND).set_index(["measure", "policy"])
    assert found.loc[("perplexity", "local"), "value"] == pytest.approx(math.exp(1.1))
    # t(1) = 12.706, standard error 0.1: 1.1 +- 1.2706 nats.
    assert found.loc[("perplexity", "local"), "high"] == pytest.approx(math.exp(2.3706), rel=1e-3)
    assert found.loc[("perplexity", "local"), "standard error"] == pytest.approx(0.1 * math.exp(1.1))
    assert math.isnan(found.loc[("perplexity", "local"), "chance"])
    assert found.loc[("recall", "novelty"), "value"] == 1.0
    assert found.loc[("recall", "h2o"), "standard error"] == pytest.approx(math.sqrt(0.25 / 2))
    assert found.loc[("recall", "h2o"), "chance"] == 1e-5
    assert summary_table(HAND).written().chance.unique().tolist() == ["–", "1e-05"]
    by_budget = table(HAND, "recall")
    assert by_budget.frame.set_index("policy").loc["h2o", "10 %"] == 0.5
    assert by_budget.written().set_index("policy").loc["h2o", "10 %"] == "0.50 (0.09 to 0.91)"


def test_a_gain_over_transformers_cache_is_not_called_one_over_the_full_cache() -> None:
    rows = [("full (ours)", 400.0, 2.0, 1.0), ("h2o 20%", 1200.0, 6.0, 1.5)]
    columns = ["cache", "decoded tokens/s", "decoding, times faster", "prompt, ratio"]
    said = cost_verdict(pd.DataFrame(rows, columns=columns))
    assert "6.0 times as fast as transformers' cache" in said
    assert "3.0 times as fast as ours" in said and "1.50 times as long" in said


def test_duels_are_paired_with_the_best_rival() -> None:
    found = duels(HAND).set_index("measure")
    assert found.loc["perplexity", "best rival"] == "local"
    assert found.loc["perplexity", "lead"] == pytest.approx(0.0)
    assert found.loc["recall", "lead"] == pytest.approx(0.5)
    assert (found.outcome == "not decided").all()
    assert "nowhere surely worse" in notes_on_ours(HAND)
    lost = HAND.copy()
    lost.loc[(lost.measure == "perplexity") & (lost.policy == "novelty"), "value"] = [5.0, 5.2]
    said = notes_on_ours(lost)
    assert (
        "novelty, not published: worse than the best of h2o, local, streaming in perplexity at 10 %, 1 of 3"
        in said
    )


def test_variants_are_named_by_use() -> None:
    perplexity, recall, _ = variants_verdict(HAND).split(" recall")
    # StreamingLLM's lead of 2.0 and 1.8 has a p of 0.03, one of three.
    assert perplexity.startswith("perplexity: best are local at 10 % (2 of 3 others not surely worse).")
    assert perplexity.endswith("than Local: none.")
    assert (
        recall.startswith(": best are novelty at 10 % (2 of 3 others not surely worse).")
        and "than Local: h2o." in recall
    )


def test_a_split_is_said_in_tokens_of_the_prompt() -> None:
    assert H2O(0.1).described_split(384) == "19 chosen, 19 newest of 384"
    assert Local(0.1).described_split(384) == "38 newest of 384"
    assert StreamingLLM(0.05).described_split(384) == "4 first, 15 newest of 384"
    # A quarter is novel, but 32 of the 38 are the newest.
    assert Novelty(0.1).described_split(384) == "6 chosen, 32 newest of 384"
    assert Full().described_split(384) == "all 384"


def test_every_policy_of_the_study_splits_its_budget() -> None:
    for budget in (0.05, 0.5):
        for policy in (policies(budget) | h2o_variants(budget)).values():
            assert policy.split(400).total == pytest.approx(400 * budget, abs=1)


def test_a_study_is_measured_once_and_drawn(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "corpus" / "test").mkdir(parents=True, exist_ok=True)
        text = "".join(f"def function_{number}_{i}(x):\n    return x * {i}\n\n\n" for i in range(30))
        (tmp_path / "corpus" / "test" / f"{number}.txt").write_text(text)
    study = CacheStudy(BASE, CorpusSpec(f"dir:{tmp_path / 'corpus'}", "test"), 40, 4, 2, 96, 2, (0,))
    chosen = {name: [policies(b)[name] for b in (0.2, 0.5)] for name in policies(0.2)}
    ask = partial(measure, runs=tmp_path / "runs", cache=tmp_path / "cache", progress=False)
    rows = ask(study, chosen)
    assert len(rows) == (1 + 2 * len(chosen)) * (2 + 2 + 2)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/finished.json")}
    assert len(written) == 1 + 2 * len(chosen)
    pd.testing.assert_frame_equal(ask(study, chosen), rows)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/finished.json")} == written
    assert len(budget_figure(rows).axes) == 3
    with pytest.raises(ValueError, match="documents=9"):
        ask(dataclasses.replace(study, documents=9), chosen)


def test_what_is_kept_is_shown_on_the_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = tokenizer("def add(first, second):\n    return first + second\n")["input_ids"]
    share = kept_share(model, ids, Local(4))
    assert share.shape == (4, len(ids))
    assert share[:, -4:].min() == pytest.approx(1) and share[:, :-4].max() == 0
    figure = kept_text_figure(tokenizer, ids, {"local": share, "novelty": kept_share(model, ids, Novelty(4))})
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["local", "novelty"]


def test_costs_are_ratios_to_the_full_cache() -> None:
    model = cache_bound_model(layers=1, heads=2, head_size=8)
    found = compare_caches(
        model,
        {"h2o": partial(BudgetCache, model, H2O(0.25)), "full": partial(BudgetCache, model, Full())},
        prompt_tokens=40,
        new_tokens=3,
        batch=2,
        rounds=2,
        progress=False,
    ).set_index("cache")
    assert found.loc["transformers' cache", "decoding, times faster"] == 1
    assert found.loc["transformers' cache", "cache, share"] == 1
    # 10 of 43 tokens: keys and values of 2 x 8 floats, and a score and a position, 4 bytes each.
    slots = 10 + 1  # the budget, and a free one
    assert found.loc["h2o", "cache (MiB)"] * 2**20 == 2 * 2 * slots * (2 * 8 * 4 + 8)
    assert cache_bytes(BudgetCache(model, Full())) == 0
