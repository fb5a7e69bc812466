"""Replay beside others: what is compared, what is claimed from rows by hand, and where answers stand."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache

from figure_data import darkness
from sinklora.cache.attention_scores import Score
from sinklora.cache.expected_attention import ExpectedAttention
from sinklora.cache.h2o import H2O
from sinklora.cache.replay import Replay
from sinklora.cache.snapkv import SnapKV
from sinklora.evaluate.planted_facts import plant_facts
from sinklora.reproduction.cache.fact_standing import (
    answer_tokens,
    standing_figure,
    standing_in_words,
    whole_answers_among_best,
)
from sinklora.reproduction.cache.replay_study import (
    DECAYED,
    LONG_RIVALS,
    OLD,
    SHARED_RIVALS,
    TWICE,
    LongPrompt,
    ReplayStudy,
    by_depth,
    compared_policies,
    differences_by_prompt,
    estimates_by_prompt,
    leads,
    measure_replay,
    replay_claims,
    values_table,
)
from sinklora.reproduction.cache.second_pass import SecondPass
from sinklora.reproduction.cache.study import PERPLEXITY, published_policies
from sinklora.reproduction.cache.text_study import FACTS, FACTS_LATER, NATS, TextStudy
from sinklora.reproduction.names import CACHES
from sinklora.train.sources import CorpusSpec

BOOKS = [f"book {number}" for number in range(8)]


def rows_of(levels: dict[str, dict[str, float]], prompts: tuple[int, ...] = (100,)) -> pd.DataFrame:
    """Eight books of two items each, whose values are a policy's level and a little that is the book's."""
    lines = []
    for prompt in prompts:
        for measure, by_policy in levels.items():
            for policy, level in by_policy.items():
                for place, book in enumerate(BOOKS):
                    for item in range(2):
                        own = 0.01 * place + 0.002 * (len(policy) + place) % 0.003
                        line = {"measure": measure, "policy": policy, "value": level + own, "cluster": book}
                        line |= {"prompt": prompt, "budget": 1.0 if policy == "full" else 0.2, "split": ""}
                        depth = (2 * place + item) / 16
                        lines.append({**line, "item": f"0/{place}/{item}", "depth": depth, "chance": 0.0})
    return pd.DataFrame(lines)


LEVELS = {
    PERPLEXITY: {"full": 3.0, "replay": 3.1, "h2o": 3.2, "local": 4.0, "streaming": 3.3},
    FACTS: {"full": 0.8, "replay": 0.7, "h2o": 0.1, "local": 0.2, "streaming": 0.2},
    FACTS_LATER: {"full": 0.8, "replay": 0.6, "h2o": 0.05, "local": 0.1, "streaming": 0.12},
}


def outcomes(rows: pd.DataFrame) -> dict[str, str]:
    return {claim.sentence: claim.outcome for claim in replay_claims(rows, "a model", "a table")}


def test_every_comparison_and_both_goals_are_claimed() -> None:
    found = outcomes(rows_of(LEVELS, prompts=(100, 200)))
    assert len(found) == 2 + 1 + 3 * 3 and set(found.values()) == {"held"}
    assert "at 20 % of 100, 200 tokens Replay is better than Local in perplexity" in found
    first, times = replay_claims(rows_of(LEVELS, prompts=(100, 200)), "a model", "a table")[:2]
    assert "of 100 tokens" in first.sentence and "of 200 tokens" in times.sentence
    assert times.estimate == pytest.approx(0.6 / 0.12, rel=0.3) and times.restated


def test_the_unit_of_every_claim_is_the_book() -> None:
    """Two items of each of eight books, after two prompts."""
    claims = replay_claims(rows_of(LEVELS, prompts=(100, 200)), "a model", "a table")
    counted = [claim for claim in claims if "nowhere" not in claim.sentence]
    assert len(counted) == 2 + 3 * 3 and {claim.n for claim in counted} == {"8 documents"}
    # Ahead by 0.07 nats in every other book and behind by as much in the others: 16 items that vary so would
    # show that their mean is not behind by 0.05.
    rows = rows_of({PERPLEXITY: {"full": 3.0, "replay": 3.1, "h2o": 3.1}})
    h2o = rows.policy == "h2o"
    replay = rows[rows.policy == "replay"].value.to_numpy()
    rows.loc[h2o, "value"] = replay + np.where(rows[h2o].cluster.isin(BOOKS[::2]), 0.07, -0.07)
    for by_cluster, outcome in ((rows, "not decided"), (rows.assign(cluster=rows["item"]), "held")):
        claims = replay_claims(by_cluster, "a model", "a table")
        [nowhere] = [claim for claim in claims if "nowhere" in claim.sentence]
        assert nowhere.outcome == outcome


def test_goals_that_are_missed_are_said_to_be() -> None:
    weaker = {**LEVELS, FACTS_LATER: {**LEVELS[FACTS_LATER], "replay": 0.2}}
    times, nowhere, *others = replay_claims(rows_of(weaker), "a model", "a table")
    assert times.outcome == "did not hold" and nowhere.outcome == "held"
    worse = {**LEVELS, PERPLEXITY: {**LEVELS[PERPLEXITY], "h2o": 3.0}}
    times, nowhere, *others = replay_claims(rows_of(worse), "a model", "a table")
    assert times.outcome == "held" and nowhere.outcome == "did not hold"
    assert nowhere.estimate == pytest.approx(-0.1, abs=0.01) and nowhere.n == "9 comparisons"
    assert nowhere.unit == "nats a token (least sure: perplexity at 20 % of 100 tokens, beside H2O)"
    against = {claim.sentence: claim for claim in others}[
        "at 20 % of 100 tokens Replay is better than H2O in perplexity"
    ]
    assert against.outcome == "did not hold" and against.estimate == pytest.approx(-0.1, abs=0.01)
    alone = rows_of(LEVELS)
    assert replay_claims(alone[alone.cluster == BOOKS[0]], "", "")[1].outcome == "not decided"


@pytest.mark.parametrize(
    ("behind", "spread", "outcome"),
    [(0.04, 0.001, "held"), (0.0, 0.2, "not decided"), (0.06, 0.001, "did not hold")],
)
def test_nowhere_behind_is_shown_and_not_taken_for_granted(
    behind: float, spread: float, outcome: str
) -> None:
    """To be nowhere surely worse is no proof: fewer documents would make it truer."""
    rows = rows_of({**LEVELS, PERPLEXITY: {**LEVELS[PERPLEXITY], "h2o": 3.1 - behind}})
    sign = rows.cluster.map(lambda book: 1 if BOOKS.index(book) % 2 else -1)
    rows.loc[(rows.policy == "h2o") & (rows.measure == PERPLEXITY), "value"] += spread * sign
    assert replay_claims(rows, "", "")[1].outcome == outcome


def test_answers_of_a_full_cache_at_chance_make_nobody_near() -> None:
    guessed = {**LEVELS, FACTS: dict.fromkeys(LEVELS[FACTS], 0.1)}
    rows = rows_of(guessed)
    rows.loc[rows.measure == FACTS, "chance"] = 0.5
    nowhere = replay_claims(rows, "", "")[1]
    assert (nowhere.outcome, nowhere.n) == ("held", "6 comparisons")
    alone = rows[rows.policy.isin(["full", "replay"])]
    missing = replay_claims(alone, "", "")[1]
    assert missing.outcome == "cannot be measured here" and "none of them" in missing.reason


def test_each_budget_is_claimed_by_itself() -> None:
    """A lead at one budget is none at another, and no mean of both hides that."""
    behind = {**LEVELS, PERPLEXITY: {**LEVELS[PERPLEXITY], "h2o": 3.0}}
    small, large = rows_of(behind), rows_of(LEVELS)
    small = small[small.policy != "full"].assign(budget=0.1)
    claims = {c.sentence: c for c in replay_claims(pd.concat([large, small]), "a model", "a table")}
    for budget, outcome, lead in ((20, "held", 0.1), (10, "did not hold", -0.1)):
        claim = claims[f"at {budget} % of 100 tokens Replay is better than H2O in perplexity"]
        assert (claim.outcome, claim.estimate) == (outcome, pytest.approx(lead, abs=0.01))


def test_why_the_facts_cannot_be_compared_is_said() -> None:
    rows = rows_of(LEVELS)
    others = rows.assign(budget=rows.budget.replace(0.2, 0.1))
    without = rows[rows.policy.isin(["full", "replay"])]
    nothing = rows.assign(value=rows.value.where(~rows.policy.isin(OLD) | (rows.measure != FACTS_LATER), 0.0))
    for given, reason in (
        (others, "20 % was not measured"),
        (without, "none of them was measured at 20 %"),
        (nothing, "none of them gives back any"),
    ):
        [times] = [c for c in replay_claims(given, "a model", "a table") if "times as many" in c.sentence]
        assert (times.outcome, times.reason) == ("cannot be measured here", reason)


def test_leads_are_of_items_that_both_have() -> None:
    rows = rows_of(LEVELS, prompts=(100, 200))
    found = leads(rows, FACTS, "local")
    assert len(found) == 2 * 16 and found.lead.mean() == pytest.approx(0.5, abs=0.01)
    assert set(found.cluster) == set(BOOKS)
    lines = differences_by_prompt(rows)
    assert len(lines) == 2 * 3 * 4 and list(lines.columns[:2]) == ["prompt", "measure"]
    values = estimates_by_prompt(rows)
    assert len(values) == 2 * 3 * 5 and "prompt" in values_table(values).frame.columns


def test_quarters_of_a_passage_by_hand() -> None:
    lower = {**LEVELS, FACTS_LATER: {**LEVELS[FACTS_LATER], "replay": 0.3}}
    rows = pd.concat([rows_of(LEVELS), rows_of(lower, prompts=(200,))])
    found = by_depth(rows, budget=0.2)
    assert list(found.columns) == ["first quarter", "second", "third", "last"]
    assert list(found.loc[100].index) == list(found.loc[200].index) == list(LEVELS[FACTS_LATER])
    last = rows[(rows.measure == FACTS_LATER) & (rows.policy == "replay") & (rows.depth >= 0.75)]
    for prompt, of_prompt in last[last.budget == 0.2].groupby("prompt"):
        assert found.loc[(prompt, "replay"), "last"] == pytest.approx(of_prompt.value.mean())
    assert found.loc[(100, "replay"), "last"] > found.loc[(200, "replay"), "last"]


def test_policies_have_equal_budgets_and_forms_their_own(tmp_path: Path) -> None:
    text = TextStudy("data/base", 48, 2, 2, 8, 48, 1, facts=1)
    (tmp_path / "texts" / "test").mkdir(parents=True)
    for name in ("reproducing", "results", "chat"):
        shutil.copy(f"docs/{name}.md", tmp_path / "texts" / "test" / f"{name}.txt")
    corpus = CorpusSpec(f"dir:{tmp_path / 'texts'}", "test")
    study = ReplayStudy(text, corpus, (110, 120), (0, 1), (0.1, 0.2), (0.2,))
    chosen = compared_policies(study)
    later = [name for name in published_policies() if name not in OLD]
    forms = ["replay_layer", "replay_head"]
    assert list(chosen) == ["replay", *OLD, *later, *SHARED_RIVALS, TWICE, *forms, DECAYED]
    assert chosen[TWICE] == [SecondPass(0.2)]
    decayed = [H2O(budget, scoring=Score(decay=0.97), sink_tokens=4) for budget in (0.1, 0.2)]
    assert chosen[DECAYED] == decayed
    assert all(name in CACHES for name in chosen)
    assert chosen["snapkv_model"] == [SnapKV(0.2, share="model")]
    assert chosen["expected_attention_layer"] == [ExpectedAttention(0.2, share="layer", epsilon=0.01)]
    assert all([policy.budget for policy in chosen[name]] == [0.2] for name in later)
    assert [policy.budget for policy in chosen["h2o"]] == [0.1, 0.2]
    assert chosen["replay_head"] == [Replay(0.2, share="head")]
    longer = replace(study, long_prompts=(LongPrompt(130),))
    assert longer.policies_at(110) == chosen
    few = longer.policies_at(130)
    assert list(few) == ["replay", *OLD, *LONG_RIVALS]
    assert all(few[name] == [policy for policy in chosen[name] if policy.budget == 0.2] for name in few)
    all_budgets = replace(longer, other_budgets=()).policies_at(130)
    assert [policy.budget for policy in all_budgets["snapkv_model"]] == [0.1, 0.2]
    with pytest.raises(
        ValueError, match=r"other_budgets=\[0.2\]: expected some of budgets=\[0.1\]; leave out 0.2"
    ):
        replace(study, budgets=(0.1,))
    study.check_budget("page_budget", 0.2)
    with pytest.raises(ValueError, match=r"page_budget=\[0.1\]: expected some of other_budgets=\[0.2\]"):
        study.check_budget("page_budget", 0.1)  # at which the others are not measured
    replace(study, other_budgets=()).check_budget("page_budget", 0.1)
    small = ReplayStudy(text, corpus, (110,), (0, 1), (0.2,))
    rows = measure_replay(small, runs=tmp_path, cache=tmp_path, progress=False)
    assert set(rows.policy) == {"full", "replay", *OLD} and set(rows.prompt) == {110}
    # Perplexity once, facts of both draws, with their passage those of the first.
    of = rows[rows.policy == "replay"]
    assert of[of.measure == PERPLEXITY]["item"].tolist() == ["0/0", "0/1"]
    assert of[of.measure == FACTS]["item"].tolist() == ["0/0/0"]
    assert of[of.measure == FACTS_LATER]["item"].tolist() == ["0/0/0", "1/0/0"]
    assert not of.duplicated(["measure", "item"]).any()
    names = [run["run"] for run in rows.attrs["runs"]]
    assert len(names) == len(set(names)) == (1 + 2) * (2 + len(OLD))
    later_alone = ReplayStudy(text, corpus, (), (0,), (0.2,), (0.2,), (LongPrompt(110, 2, 1, 1, 1),))
    long = measure_replay(later_alone, runs=tmp_path, cache=tmp_path, progress=False)
    assert set(long.policy) == {"full", "replay", *OLD, *LONG_RIVALS}
    assert set(long.measure) == {PERPLEXITY, FACTS_LATER, FACTS_LATER + NATS}
    # Asked later is asked later, whether or not it was asked at once as well.
    key = ["measure", "item", "policy"]
    assert set(long["item"]) == {"0/0", "0/1", "0/0/0"}
    again = long[[*key, "value"]].merge(rows[[*key, "value"]], on=key, suffixes=("", " before"))
    assert set(again.policy) == set(rows.policy) and set(again.measure) == set(long.measure)
    assert (again.value == again["value before"]).all()


def study_of(prompts: tuple[int, ...], long: tuple[LongPrompt, ...], seeds: tuple[int, ...]) -> ReplayStudy:
    return ReplayStudy(TextStudy("data/base"), CorpusSpec("dir:books"), prompts, seeds, (0.2,), (0.2,), long)


def test_what_is_read_and_asked_after_each_prompt() -> None:
    longer = (LongPrompt(200, 8, 2), LongPrompt(300, 4, fact_passages=2, facts=16))
    study = study_of((100,), longer, (7, 8, 9))
    assert study.lengths == (100, 200, 300)
    asked = [(t.prompt_tokens, t.fact_tokens, t.passages, t.seed, t.facts_at_once) for t in study.texts()]
    short = [(100, 100, 64, 7, True), (100, 100, 64, 8, False), (100, 100, 64, 9, False)]
    long = [(200, 200, 8, 7, False), (200, 200, 8, 8, False), (300, 300, 4, 7, False)]
    assert asked == short + long
    assert [(t.facts, t.fact_passages) for t in study.texts()] == [(4, 16)] * 3 + [(4, 32)] * 2 + [(16, 2)]
    assert study.in_words() == (
        "after 100 tokens 64 passages, and 3 draws of 4 facts in each of 16; "
        "after 200 tokens 8 passages, and 2 draws of 4 facts in each of 32; "
        "after 300 tokens 4 passages, and one draw of 16 facts in each of 2"
    )
    code = study.of_kind("code", per_document=1)
    assert code.in_words() == "after 100 tokens 64 passages, and one draw of 4 facts in each of 16"
    assert code.text.per_document == 1 and code.text.kind == "code"
    assert list(code.policies_at(100)) == ["replay", *OLD, *LONG_RIVALS]


def test_prompts_that_cannot_be_are_refused() -> None:
    assert [text.seed for text in study_of((), (LongPrompt(200, 8, 3),), (5, 6)).texts()] == [5, 6]
    with pytest.raises(ValueError, match=r"prompts=\(\): give a length"):
        study_of((), (), (0,))
    with pytest.raises(ValueError, match="seeds"):
        study_of((100,), (), (0, 0))
    with pytest.raises(ValueError, match="facts"):
        LongPrompt(100, facts=400)
    with pytest.raises(ValueError, match=r"prompts of \(100, 100\) tokens; give each length once"):
        study_of((100,), (LongPrompt(100),), (0,))
    with pytest.raises(ValueError, match="draws"):
        LongPrompt(100, draws=0)


def test_claims_of_other_text_say_so_and_are_no_headlines() -> None:
    claims = replay_claims(rows_of(LEVELS), "a model", "a table", "source code")
    assert all("of source code" in claim.sentence for claim in claims)
    assert not any(claim.headline for claim in claims)
    plain = replay_claims(rows_of(LEVELS), "a model", "a table")
    assert [claim.headline for claim in plain] == [True, True, *[False] * 9]
    assert [claim.estimate for claim in claims] == [claim.estimate for claim in plain]


def test_where_answers_stand() -> None:
    model = AutoModelForCausalLM.from_pretrained("data/base").eval()
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    text = np.array(tokenizer("Nothing of this is asked for. " * 60)["input_ids"])
    passages = plant_facts(tokenizer, [text], tokens=240, seed=1, facts=2)
    for fact in passages[0].facts:
        tokens = answer_tokens(tokenizer, passages[0], fact.answer)
        assert fact.answer in tokenizer.decode(passages[0].ids[tokens])
        assert len(tokenizer.decode(passages[0].ids[tokens[1:]])) < len(fact.answer) + 1
    with pytest.raises(ValueError, match="answer='absent': the passage does not hold it"):
        answer_tokens(tokenizer, passages[0], "absent")
    shares = {
        name: whole_answers_among_best(model, tokenizer, passages, policy, 0.5)
        for name, policy in (("H2O", H2O(1.0)), ("Replay", Replay(1.0)))
    }
    heads = (model.config.num_hidden_layers, model.config.num_key_value_heads)
    assert all(found.shape == heads and set(np.unique(found)) <= {0, 0.5, 1} for found in shares.values())
    everything = whole_answers_among_best(model, tokenizer, passages, H2O(1.0), 1.0)
    assert (everything == 1).all()
    figure = standing_figure(shares, "among the best")
    for axis, found in zip(figure.axes, shares.values(), strict=False):
        assert np.array_equal(axis.images[0].get_array(), found)
        assert np.array_equal(np.argsort(darkness(axis), None, "stable"), np.argsort(found, None, "stable"))


class ScoredByHand(DynamicCache):
    """A cache of one layer and four heads, with the scores that a test gives its tokens."""

    scores = torch.zeros(4, 0)

    def __init__(self, model: object, policy: object) -> None:
        super().__init__()
        layer = SimpleNamespace(columns=lambda: {"scores": self.scores[None]})
        self.budget_layers = [layer]


def test_an_answer_stands_among_the_best_with_all_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that rank all of it, all but its first token, its last token alone, and nothing of it."""
    model = AutoModelForCausalLM.from_pretrained("data/base").eval()
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    text = np.array(tokenizer("Nothing of this is asked for. " * 60)["input_ids"])
    [passage] = plant_facts(tokenizer, [text], tokens=240, seed=1, facts=1)
    tokens = answer_tokens(tokenizer, passage, passage.facts[0].answer)
    assert len(tokens) > 2
    scores = torch.arange(240.0).flip(0).repeat(4, 1) / 240  # of the first half all are the best
    scores[:, tokens] = -1.0
    scores[0, tokens] = scores[1, tokens[1:]] = scores[2, tokens[-1]] = 2.0
    monkeypatch.setattr(ScoredByHand, "scores", scores)
    monkeypatch.setattr("sinklora.reproduction.cache.fact_standing.BudgetCache", ScoredByHand)
    found = whole_answers_among_best(model, tokenizer, [passage], H2O(1.0), 0.5)
    assert found.tolist() == [[1, 0, 0, 0]]


def test_what_heads_rank_is_counted_in_words() -> None:
    shares = {"H2O": np.array([[0.0, 0.25], [0.5, 0.0]]), "Replay": np.array([[1.0, 0.75], [0.0, 0.25]])}
    assert standing_in_words(shares, 0.2) == (
        "H2O: 0 of 4 heads do so for more than half of the facts, the best for 50%, the mean for 19%; "
        "Replay: 2 of 4 heads do so for more than half of the facts, the best for 100%, the mean for 50%; "
        "by chance an answer of three tokens 0.8%."
    )
