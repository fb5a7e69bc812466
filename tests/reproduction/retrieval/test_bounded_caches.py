"""A model as it is under several caches: tables by hand, what can be measured, what a stopped run keeps."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from figure_data import error_bars
from helpers import assert_close
from sinklora.evaluate.paired_effects import effect
from sinklora.evaluate.read_prompt import ReadPrompt
from sinklora.evaluate.statistics import Accuracy
from sinklora.evaluate.topics import make_topics
from sinklora.records.tables import part
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.retrieval.bounded_caches import (
    CANNOT,
    REPLAY,
    claimed_leads,
    compared_caches,
    folder_that_is_there,
)
from sinklora.reproduction.retrieval.cache_tables import (
    CHANCE_NATS,
    EXACT,
    LIKELIEST,
    NATS,
    WORSE,
    keys_table,
    lengths_in_words,
    side_by_side,
    topics_in_words,
    topics_table,
)
from sinklora.reproduction.retrieval.claims import cached_key_claims, cached_topic_claims
from sinklora.reproduction.retrieval.figures import CACHE_MARKS, keys_by_cache_figure
from sinklora.reproduction.retrieval.keys_in_prose_study import KeysInProseStudy, measure_keys_in_prose
from sinklora.reproduction.retrieval.topic_ranking import conversations, measure_topic_ranks
from sinklora.train.sources import CorpusSpec
from tiny_models import tiny_model

TEMPLATE = "{% for m in messages %}<ask>{{ m['content'] }}</ask>{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained("data/base")
    made.chat_template = TEMPLATE
    return made


def tiny(**changes: Any) -> ModelUnderTest:
    load = partial(tiny_model, "llama-gqa", vocab_size=4096, max_position_embeddings=1024, **changes)
    return ModelUnderTest("tiny", None, {"name": "tiny"}, load)


# --- tables -------------------------------------------------------------------------------------------------


def key_rows(nats: dict[tuple[int, str], list[float]]) -> pd.DataFrame:
    """Trials in turn right and wrong."""
    rows = [
        {"tokens": tokens, "cache": cache, "trial": trial, "nats": value, "correct": trial % 2 == 0}
        for (tokens, cache), values in nats.items()
        for trial, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


ROWS = key_rows(
    {
        (100, "full"): [1.0, 2.0, 3.0, 2.0],
        (100, "H2O"): [2.0, 3.0, 4.0, 3.0],
        (100, "Local"): [14.0, 10.0, 13.0, 11.0],
        (900, "full"): [15.0, 5.0, 14.0, 11.0],
        (900, "H2O"): [1.0, 1.0, 1.0, 1.0],
        (900, "Local"): [9.0, 9.0, 9.0, 9.0],
    }
)


def test_keys_are_compared_with_the_full_cache_in_pairs() -> None:
    lines = keys_table(ROWS).frame.set_index(["tokens", "cache"])
    near = lines.loc[(100, "H2O")]
    assert (near[EXACT], near.n, near[NATS]) == (0.5, 4, 3.0)
    # Every single key costs one nat more, which leaves nothing for an interval to be wide of.
    assert (near[WORSE], near[part(WORSE, "low")], near[part(WORSE, "high")]) == (1.0, 1.0, 1.0)
    assert near[part(EXACT, "low")] == pytest.approx(Accuracy(2, 4).interval()[0])
    assert math.isnan(lines.loc[(100, "full"), WORSE])
    assert_close(CHANCE_NATS, math.log(100_000), atol=1e-9)


def test_what_the_full_cache_cannot_do_is_not_measured() -> None:
    remarks = keys_table(ROWS).frame.set_index(["tokens", "cache"]).remark
    assert remarks[100].to_dict() == {"full": "", "H2O": "", "Local": "at chance"}
    assert set(remarks[900]) == {CANNOT}


def test_measurable_lengths_alone_decide() -> None:
    assert "full 100; H2O 100; Local none" in lengths_in_words(ROWS)
    [claim] = cached_key_claims(ROWS, "real")
    # At 100 tokens: (12 + 7 + 9 + 8) / 4 nats.
    assert (claim.outcome, claim.estimate, claim.n) == ("held", pytest.approx(9.0), "4 passages × 1 lengths")
    turned = ROWS.assign(cache=ROWS.cache.replace({"H2O": "Local", "Local": "H2O"}))
    assert cached_key_claims(turned, "real")[0].outcome == "did not hold"
    far = ROWS[ROWS.tokens == 900]
    assert lengths_in_words(far).startswith("Cannot be measured")
    assert cached_key_claims(far, "real")[0].outcome == "cannot be measured here"


def test_the_unit_of_pass_keys_is_the_passage_at_all_lengths() -> None:
    near = key_rows({(100, "full"): [1.0] * 4, (100, "H2O"): [2.0] * 4, (100, "Local"): [3.0, 4.0, 6.0, 7.0]})
    far = key_rows({(200, "full"): [1.0] * 4, (200, "H2O"): [2.0] * 4, (200, "Local"): [5.0, 4.0, 8.0, 9.0]})
    [claim] = cached_key_claims(pd.concat([near, far]), "real")
    assert claim.n == "4 passages × 2 lengths"
    by_passage = effect(lambda mean: mean, np.array([[2.0, 2.0, 5.0, 6.0]]))
    assert (claim.estimate, claim.low, claim.high) == pytest.approx(
        (by_passage.estimate, by_passage.low, by_passage.high)
    )


def topic_rows(ranks: dict[tuple[str, str], list[int]]) -> pd.DataFrame:
    return pd.DataFrame(
        {"set": name, "cache": cache, "conversation": n, "topics": 4, "rank": rank, "correct": n == 0}
        for (name, cache), values in ranks.items()
        for n, rank in enumerate(values)
    )


def test_topics_stand_beside_chance() -> None:
    rows = topic_rows(
        {
            ("easy", "full"): [1, 1, 1, 1, 1, 1, 1, 2],
            ("easy", "H2O"): [1, 2, 3, 4, 1, 2, 3, 4],
            ("hard", "full"): [1, 2, 3, 4, 1, 2, 3, 4],
            ("hard", "H2O"): [1, 1, 1, 1, 1, 1, 1, 1],
        }
    )
    lines = topics_table(rows).frame.set_index(["conversations", "cache"])
    assert lines[LIKELIEST].tolist() == [7 / 8, 2 / 8, 2 / 8, 1] and set(lines.chance) == {0.25}
    assert lines[EXACT].tolist() == [1 / 8] * 4
    assert lines["mean rank"].tolist() == [9 / 8, 2.5, 2.5, 1]
    assert lines.remark.tolist() == ["", "at chance", CANNOT, CANNOT]
    said = topics_in_words(rows)
    assert "easy: full 0.88, H2O 0.25." in said and said.endswith(f"it {CANNOT}: hard.")
    [claim] = cached_topic_claims(rows, "real")
    assert (claim.outcome, claim.estimate) == ("did not hold", pytest.approx(2 / 8 - 7 / 8))
    alike = rows[rows.cache == "full"]
    assert cached_topic_claims(pd.concat([alike, alike.assign(cache="H2O")]), "real")[0].outcome == "held"
    hard = cached_topic_claims(rows[rows["set"] == "hard"], "real")[0]
    assert (hard.outcome, hard.estimate) == ("cannot be measured here", None)


@pytest.mark.parametrize(("fewer", "outcome"), [(8, "held"), (20, "not decided"), (32, "did not hold")])
def test_a_fifth_of_the_topics_beyond_chance_is_near(fewer: int, outcome: str) -> None:
    """The full cache finds half of 400, a quarter more than chance, of which a fifth are 20."""
    ranks = {
        ("easy", "full"): [1] * 200 + [2] * 200,
        ("easy", "H2O"): [2] * fewer + [1] * (200 - fewer) + [2] * 200,
    }
    [claim] = cached_topic_claims(topic_rows(ranks), "real")
    assert (claim.outcome, claim.estimate) == (outcome, pytest.approx(-fewer / 400))


def test_what_was_asked_once_has_one_line() -> None:
    wide = side_by_side(ROWS, ["tokens", "trial"], ["nats", "correct"])
    assert list(wide.columns[:5]) == ["tokens", "trial", "nats, full", "nats, H2O", "nats, Local"]
    assert len(wide) == 8 and wide["nats, Local"].tolist() == [14, 10, 13, 11, 9, 9, 9, 9]
    assert wide["correct, H2O"].tolist() == [True, False] * 4


def test_the_figure_shows_what_the_table_says() -> None:
    frame = keys_table(ROWS).frame
    exact, nats = keys_by_cache_figure(frame, CHANCE_NATS).axes
    for panel, heading in ((exact, EXACT), (nats, NATS)):
        for name, points in error_bars(panel):
            shown = frame[frame.cache == name][[part(heading, "low"), heading, part(heading, "high")]]
            assert_close([point[1:] for point in points], shown.to_numpy(float), atol=1e-9)
        assert [name for name, _ in error_bars(panel)] == ["full", "H2O", "Local"]
    assert [text.get_text() for text in nats.get_xticklabels()] == ["100", "900"]
    assert [(text.get_text(), text.xy[1]) for text in nats.texts] == [("chance", CHANCE_NATS)]
    assert nats.get_ylim()[0] == 0 and nats.get_ylim()[1] > CHANCE_NATS
    assert len({x for panel in (exact, nats) for _, points in error_bars(panel) for x, *_ in points}) == 6


# --- what is asked ------------------------------------------------------------------------------------------


def test_a_folder_is_there_or_not(tmp_path: Path) -> None:
    assert folder_that_is_there(str(tmp_path)) == tmp_path
    assert folder_that_is_there("") is None and folder_that_is_there(str(tmp_path / "no")) is None


def test_bounded_caches_have_the_budget() -> None:
    caches = compared_caches(0.3)
    assert list(caches) == ["full", "H2O", "StreamingLLM", "Local", REPLAY]
    assert caches["full"] is None and list(caches) == list(CACHE_MARKS), "each can be drawn"
    assert {policy.budget for policy in caches.values() if policy} == {0.3}


def test_leads_are_claimed_of_what_was_measured() -> None:
    every = [("H2O", "StreamingLLM"), ("H2O", "Local"), (REPLAY, "H2O")]
    assert claimed_leads(compared_caches(0.3)) == every
    assert claimed_leads(["full", "Local", "H2O"]) == [("H2O", "Local")]


def test_keys_are_asked_once(tmp_path: Path) -> None:
    corpus = CorpusSpec("installed:", "test", 4_000, total_characters=400_000)
    study = KeysInProseStudy("data/base", corpus, (96, 160), 2)
    caches = {"full": None, "Local": compared_caches(0.2)["Local"]}
    ask = partial(measure_keys_in_prose, study, caches=caches, runs=tmp_path, progress=False)
    rows = ask(tiny())
    assert len(rows) == 8 and rows.depth.tolist() == [0.0, 1.0] * 4
    assert rows.groupby("cache", sort=False).nats.nunique().to_dict() == {"full": 4, "Local": 4}
    assert rows.nats.between(5, 80).all()  # an untrained model: some ten nats a digit
    assert len(list(tmp_path.glob("keys-in-prose-*/finished.json"))) == 4
    again = ask(ModelUnderTest("tiny", None, {"name": "tiny"}, lambda: pytest.fail("it was asked again")))
    pd.testing.assert_frame_equal(again, rows)


def test_conversations_that_do_not_fit_are_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.save_pretrained(tmp_path / "base")
    lines = [
        f'{{"test_id": {n}, "prompt": "{"word " * length}", "topics": ["a", "b"]}}'
        for n, length in enumerate((10, 2000, 20, 30))
    ]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    (tmp_path / "long.jsonl").write_text(lines[1])
    base = str(tmp_path / "base")
    chosen, fitting = conversations(base, tmp_path, {"some": 2, "long": 2}, 200, [])
    assert [record.test_id for record in chosen["some"]] == [0, 2]
    assert fitting == {"some": 3} and list(chosen) == ["some"]
    made, _ = conversations(base, None, {"some": 1}, 1500, [1024, 2048])
    assert {name: len(records) for name, records in made.items()} == {"generated, 1024 tokens": 1}


def test_topics_are_ranked_by_nats_a_token(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base = tmp_path / "base"
    tokenizer.save_pretrained(base)
    records = make_topics(tokenizer, tokens=400, records=4, seed=0)
    ask = partial(measure_topic_ranks, str(base), runs=tmp_path, progress=False)
    rows = ask(tiny(), {"made": records}, {"full": None})
    model = tiny().ready()
    for row, record in zip(rows.to_dict("records"), records, strict=True):
        read = ReadPrompt(model, tokenizer(f"<ask>{record.prompt}</ask>")["input_ids"], DynamicCache())
        names = [tokenizer(topic, add_special_tokens=False)["input_ids"] for topic in record.topics]
        means = [sum(losses) / len(losses) for [losses] in (read.nats([name]) for name in names)]
        assert_close(row["nats"], means, atol=1e-3)
        assert row["rank"] == sorted(means).index(means[0]) + 1 and row["topics"] == len(means) > 1
    assert len(list(tmp_path.glob("topic-ranks-*/finished.json"))) == 1
