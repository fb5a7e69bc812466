"""Fig. 6 on real text: passages, rows measured once, clustered intervals, and what is said of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figure_data import error_bars
from sinklora.cache.h2o import H2O
from sinklora.cache.sliding_window import Local
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.evaluate.clustered_means import mean_interval, share_interval
from sinklora.records.tables import part
from sinklora.reproduction.cache.cell_estimates import (
    NOT_MEASURED,
    differences,
    differences_of_models,
    differences_table,
    estimates,
    estimates_table,
    leads_in_words,
    level_interval,
)
from sinklora.reproduction.cache.figures import DODGE, estimates_figure
from sinklora.reproduction.cache.study import PERPLEXITY, QUESTIONS
from sinklora.reproduction.cache.text_study import (
    FACTS,
    FACTS_LATER,
    NATS,
    TextStudy,
    measure_text,
    passages_of,
)
from sinklora.reproduction.names import CACHES
from sinklora.train.sources import CorpusSpec
from sinklora.train.tokens import TokenizedCorpus


def test_passages_by_hand() -> None:
    starts = np.array([0, 31, 41])
    corpus = TokenizedCorpus(np.arange(54, dtype=np.uint16), starts, ("a", "b", "c"), "", {})
    found = passages_of(corpus, tokens=10, passages=3, per_document=2)
    # a: 30 tokens without BOS in two parts of 15, b: nine, too few, c: 12 in one part.
    taken = [(passage.document, passage.ids.tolist()) for passage in found]
    assert taken == [("a", list(range(3, 13))), ("c", list(range(43, 53))), ("a", list(range(18, 28)))]


def test_passages_that_do_not_suffice_are_named() -> None:
    corpus = TokenizedCorpus(np.arange(40, dtype=np.uint16), np.array([0]), ("a",), "", {})
    with pytest.raises(ValueError, match="passages=4: the corpus has 3 of 10"):
        passages_of(corpus, tokens=10, passages=4, per_document=8)


def rows_of(values: dict[tuple[str, str, float], list[float]], clusters: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"measure": m, "policy": p, "budget": b, "item": str(i), "value": v, "cluster": c, "split": ""}
            for (m, p, b), column in values.items()
            for i, (v, c) in enumerate(zip(column, clusters, strict=True))
        ]
    )


def test_items_of_a_cluster_do_not_count_as_independent() -> None:
    values = [0.0, 1.0] * 32
    for measure, interval in ((PERPLEXITY, mean_interval), (FACTS, share_interval)):
        for clusters in ([str(i) for i in range(64)], [str(i // 8) for i in range(64)]):
            found = level_interval(measure, pd.DataFrame({"value": values, "cluster": clusters}))
            assert found == interval(values, clusters) or np.isnan(found.low)


def test_no_answer_of_a_few_is_at_chance_and_not_worse() -> None:
    # None of 16 right, where one of 20 is by chance, as happens in 44 % of 16 guesses.
    rows = rows_of({(FACTS, "full", 1.0): [1.0] * 16, (FACTS, "h2o", 0.2): [0.0] * 16}, CLUSTERS[:16])
    lines = estimates(rows.assign(chance=0.05)).set_index("policy")
    assert lines.note.to_dict() == {"full": "", "h2o": "at chance"}
    ends = lines.loc["h2o", [part("value", "low"), part("value", "high")]]
    assert ends.iloc[0] == 0 < 0.05 < ends.iloc[1]
    # No passage differs from another, which says nothing of how others would.
    [against] = differences(rows).to_dict("records")
    assert against["lead"] == -1 and np.isnan(against[part("lead", "low")])


CLUSTERS = [str(i // 2) for i in range(40)]
NOISE = [0.1 * (i % 5) for i in range(40)]
HAND = rows_of(
    {
        (PERPLEXITY, "full", 1.0): [2.0 + x for x in NOISE],
        (PERPLEXITY, "h2o", 0.1): [2.5 + x for x in NOISE],
        (PERPLEXITY, "streaming", 0.1): [2.5 + x + (0.2 if i % 2 else -0.2) for i, x in enumerate(NOISE)],
        (PERPLEXITY, "local", 0.1): [3.5 + 2 * x for x in NOISE],
        (QUESTIONS, "full", 1.0): [float(i % 4 == 0) for i in range(40)],
        (QUESTIONS, "h2o", 0.1): [float(i % 4 == 1) for i in range(40)],
        (QUESTIONS, "local", 0.1): [float(i % 4 == 2) for i in range(40)],
        (QUESTIONS, "streaming", 0.1): [float(i % 4 == 2) for i in range(40)],
        (FACTS, "full", 1.0): [1.0] * 40,
        (FACTS, "h2o", 0.1): [0.0] * 40,
        (FACTS, "streaming", 0.1): [1.0] * 40,
        (FACTS, "local", 0.1): [0.0] * 40,
    },
    CLUSTERS,
).assign(chance=lambda frame: frame.measure.map({FACTS: 0.05}))


def test_estimates_by_hand() -> None:
    found = estimates(HAND).set_index(["measure", "policy"])
    assert found.loc[(PERPLEXITY, "full"), "value"] == pytest.approx(np.exp(2.2))
    assert found.loc[(PERPLEXITY, "full"), "clusters"] == 20 and found.loc[(FACTS, "h2o"), "items"] == 40
    assert found.loc[(QUESTIONS, "full"), "note"] == NOT_MEASURED  # 0.25 of four choices
    assert found.loc[(FACTS, "full"), "note"] == ""
    assert found.loc[(FACTS, "h2o"), "note"] == "at chance"  # none of 40, which 13 % of guesses come to
    worse = estimates(HAND.assign(chance=0.2)).set_index(["measure", "policy"])
    assert worse.loc[(FACTS, "h2o"), "note"] == "worse than chance"
    assert found.loc[(FACTS, "h2o"), "chance"] == pytest.approx(0.05)
    assert estimates_table(HAND).written().value.tolist()[0].startswith("9.03 (")


def test_models_are_told_apart_in_one_table() -> None:
    found = differences_of_models({"small": HAND, "large": HAND}, {"small": [0, 1, 2], "large": [0]})
    assert found.attrs["seeds"] == [0, 1, 2] and found.attrs["data"]["large"] == {"seeds": [0]}
    alone = HAND.copy()
    alone.attrs |= {"data": {"sha256": "x"}, "runs": [{"run": "a"}]}
    only = differences_of_models({"large": alone}, {"small": [0, 1, 2], "large": [0]})
    assert only.attrs == {
        "data": {"large": {"sha256": "x", "seeds": [0]}},
        "runs": [{"run": "a"}],
        "seeds": [0],
    }, "of what it holds, and of nothing else"
    assert found.model.tolist() == ["small"] * 9 + ["large"] * 9
    assert found.drop(columns="model").iloc[9:].reset_index(drop=True).equals(differences(HAND))


def test_differences_are_paired_and_their_sign_is_what_is_better() -> None:
    found = differences(HAND).set_index(["measure", "against"])
    assert found.loc[(PERPLEXITY, "local"), "lead"] == pytest.approx(1.2)
    assert found.loc[(PERPLEXITY, "full"), "lead"] == pytest.approx(-0.5)
    assert found.loc[(PERPLEXITY, "full"), "lead (high)"] == pytest.approx(-0.5)  # the noise is paired away
    assert found.outcome.to_dict() == {
        (PERPLEXITY, "streaming"): "not decided",
        (PERPLEXITY, "local"): "better",
        (PERPLEXITY, "full"): "worse",
        (QUESTIONS, "streaming"): "not decided",
        (QUESTIONS, "local"): "not decided",
        (QUESTIONS, "full"): "not decided",
        (FACTS, "streaming"): "worse",
        (FACTS, "local"): "not decided",
        (FACTS, "full"): "worse",
    }
    assert "model" in differences_table(found.reset_index().assign(model="x")).written()


def test_a_budget_that_only_one_was_measured_at_is_no_comparison() -> None:
    values = {(PERPLEXITY, "h2o", budget): [2.0, 2.1, 2.2] for budget in (0.1, 0.2)}
    values |= {(PERPLEXITY, "local", 0.2): [2.5, 2.6, 2.8], (PERPLEXITY, "full", 1.0): [1.0, 1.0, 1.1]}
    found = differences(rows_of(values, ["a", "b", "c"]))
    compared = list(zip(found.budget, found.against, strict=True))
    assert compared == [(0.1, "full"), (0.2, "local"), (0.2, "full")]
    assert found.lead.notna().all()


def test_differences_are_decided_by_documents() -> None:
    """Eight items of each of five documents, of which one lead is told: five means say less than 40 items."""
    leads = [0.0, 0.1, 0.2, 0.3, 0.9]
    clusters = [str(number // 8) for number in range(40)]
    rows = rows_of(
        {
            (PERPLEXITY, "h2o", 0.1): [2.0] * 40,
            (PERPLEXITY, "local", 0.1): [2.0 + leads[int(cluster)] for cluster in clusters],
        },
        clusters,
    )
    [line] = differences(rows).to_dict("records")
    _, low, high = mean_interval(leads)
    assert (line[part("lead", "low")], line[part("lead", "high")]) == pytest.approx((low, high))
    assert (line["items"], line["outcome"]) == (40, "not decided")
    [apart] = differences(rows.drop(columns="cluster")).to_dict("records")
    assert apart["outcome"] == "better"


def test_two_documents_of_one_mind_decide_nothing() -> None:
    values = {(PERPLEXITY, "h2o", 0.1): [2.0, 2.1], (PERPLEXITY, "local", 0.1): [2.5, 2.2]}
    values |= {(PERPLEXITY, "streaming", 0.1): [2.5, 2.3], (PERPLEXITY, "full", 1.0): [1.0, 1.0]}
    found = differences(rows_of(values, ["a", "b"])).set_index("against")
    assert found.loc["local", "lead (low)"] < 0 and found.loc["local", "outcome"] == "not decided"


def test_the_figure_shows_the_estimates() -> None:
    found = estimates(HAND)
    axes = estimates_figure(found).axes
    assert [axis.get_title() for axis in axes] == [
        f"{PERPLEXITY}\n(n = 40 in 20 documents)",
        f"{QUESTIONS}\n(n = 40 in 20 questions)",
        f"{FACTS}\n(n = 40 in 20 documents)",
    ]
    drawn = dict(error_bars(axes[0]))
    at = found.set_index(["measure", "policy"]).loc[PERPLEXITY]
    places = []
    for policy in ("h2o", "local", "streaming"):
        line = at.loc[policy]
        [[place, *found_bar]] = drawn[CACHES[policy]]
        np.testing.assert_allclose(found_bar, [line["value (low)"], line["value"], line["value (high)"]])
        places.append(place)
    np.testing.assert_allclose(places, [10 / DODGE, 10, 10 * DODGE])  # side by side, the bars are apart
    assert [tick.get_text() for axis in axes for tick in axis.get_xticklabels()] == ["10"] * 3
    chance = [line.get_ydata()[0] for line in axes[2].lines if line.get_color() == "0.7"]
    assert chance == pytest.approx([0.05])


def test_what_is_said_leaves_out_what_cannot_be_measured() -> None:
    said = leads_in_words(HAND)
    assert said.startswith("perplexity: against streaming nowhere decided; against local better at 10 %.")
    assert said.endswith(f"questions: {NOT_MEASURED}.")


def test_a_study_measures_once(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    for number in range(3):
        text = " ".join(f"In chapter {i} of book {number} they went on." for i in range(120))
        (folder / f"{number}.txt").write_text(text)
    corpus = CorpusSpec(f"dir:{tmp_path / 'corpus'}", "test")
    study = TextStudy("data/base", 60, 4, passages=4, per_document=2, fact_tokens=320, fact_passages=2)
    chosen = {"h2o": [H2O(0.2)], "local": [Local(0.2)], "streaming": [StreamingLLM(0.2)]}
    given = {"runs": tmp_path / "runs", "cache": tmp_path / "cache", "progress": False}
    rows = measure_text(study, corpus, chosen, **given)
    counts = rows.groupby(["policy", "measure"]).size().unstack()
    assert counts[PERPLEXITY].unique().tolist() == [4]
    for measure in (FACTS, FACTS_LATER, FACTS + NATS, FACTS_LATER + NATS):
        assert counts[measure].unique().tolist() == [8]
    assert rows.cluster.str.startswith("test/").all(), "the unit is the document"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/finished.json")}
    assert len(written) == 8, "perplexity and facts of each policy"
    pd.testing.assert_frame_equal(measure_text(study, corpus, chosen, **given), rows)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/finished.json")} == written
    # A folder elsewhere with the same texts is the same measurement.
    (tmp_path / "corpus").rename(tmp_path / "moved")
    moved = CorpusSpec(f"dir:{tmp_path / 'moved'}", "test")
    assert measure_text(study, moved, chosen, **given).value.equals(rows.value)
    assert len(list(tmp_path.glob("runs/*/finished.json"))) == 8
