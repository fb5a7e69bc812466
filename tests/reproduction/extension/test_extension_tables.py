"""Tables of context extension by hand, and what a reader sees of them."""

import math

import numpy as np
import pandas as pd
import pytest

from measured import measured_rows
from sinklora.records.tables import markdown, part
from sinklora.reproduction.extension.comparison import losses
from sinklora.reproduction.extension.tables import (
    ABOVE,
    LONGER,
    SAVED,
    SHARE,
    by_positions,
    comparison_table,
    extension_table,
    own_attention_table,
    shares_table,
    with_paper,
)
from sinklora.reproduction.report.published import paper_values


@pytest.fixture
def rows() -> pd.DataFrame:
    at_512 = {"base": [[2.0, 3.0]], "linear": [[4.0, 5.0]], "full": [[1.9, 2.9]] * 2, "sf": [[1.9, 2.9]] * 2}
    at_2048 = {"linear": [[3.0, 4.0]], "full": [[1.5, 2.5]] * 2, "sf": [[1.6, 2.6], [1.8, 2.8]]}
    return measured_rows({512: at_512, 2048: at_2048}, untrained=("base", "linear"))


def test_the_table_by_hand(rows: pd.DataFrame) -> None:
    made = extension_table(rows, "Table 1", ["full", "sf"], 2048, "base")
    numbers = made.frame.set_index("trained with")
    assert numbers.index.tolist() == ["base", "linear", "full", "sf"]
    assert numbers.loc["base", "512"] == pytest.approx(math.exp(2.5))
    assert math.isnan(numbers.loc["base", "2048"])
    assert numbers.loc["sf", "2048"] == pytest.approx((math.exp(2.1) + math.exp(2.3)) / 2)
    assert numbers.loc["sf", part("2048", "sd")] == pytest.approx(
        (math.exp(2.3) - math.exp(2.1)) / math.sqrt(2)
    )
    assert numbers[SAVED].tolist()[1:] == pytest.approx([-1.0, 0.5, 0.3])
    # Two seeds, 0.1 and 0.3 above: the standard error is 0.1, Student's t of one degree of freedom 12.706.
    above = numbers.loc["sf", [ABOVE, part(ABOVE, "low"), part(ABOVE, "high")]].tolist()
    assert above == pytest.approx([0.2, 0.2 - 1.2706, 0.2 + 1.2706], abs=0.02)
    assert math.isnan(numbers.loc["full", ABOVE]) and math.isnan(numbers.loc["linear", SHARE])
    shown = made.written().set_index("trained with")
    assert shown.loc["sf", ABOVE].startswith("+0.200 (-1.0")
    assert shown.loc["full", SHARE] == "100", "of two pieces full attention may improve on nothing"
    assert shown.loc["base", SAVED] == "–"
    assert shown.seeds.tolist() == ["0", "0", "2", "2"]
    gained = numbers[
        LONGER
    ]  # by the same model, from 512 to 2048 tokens; the base is not read beyond its own
    assert math.isnan(gained["base"]) and shown.loc["base", LONGER] == "–"
    assert gained[["linear", "full", "sf"]].tolist() == pytest.approx([1.0, 0.4, 0.2])


def test_shares_by_what_they_are_shares_of(rows: pd.DataFrame) -> None:
    one = rows[(rows.method != "sf") | (rows.seed == 0)]  # 0.1 nats above full attention
    one = one[(one.method != "full") | (one.seed == 0)]
    made = shares_table(one, "Table 1", ["sf"], 2048).frame.set_index("improvement on")
    assert made.index.tolist() == ["base", "linear"]
    p0, p1, full, sf = (math.exp(x) for x in (2.5, 3.5, 2.0, 2.1))
    assert made.loc["base", "sf"] == pytest.approx(100 * (p0 - sf) / (p0 - full))
    assert made.loc["linear", "sf"] == pytest.approx(100 * (p1 - sf) / (p1 - full))
    assert made.loc["linear", "nats saved by full"] == pytest.approx(1.5)


def test_kinds_of_positions_stand_under_each_other(rows: pd.DataFrame) -> None:
    table = extension_table(rows, "Table 1", ["sf"], 2048, "base")
    made = by_positions({"yarn": table, "linear": table}).written()
    assert made.positions.tolist() == ["yarn"] * 3 + ["linear"] * 3
    assert made.columns.tolist() == ["positions", *table.written().columns]


def test_the_paper_stands_under_its_share_of_the_context(rows: pd.DataFrame) -> None:
    made = with_paper(extension_table(rows, "Table 1", ["sf"], 2048, "base"), paper_values("Table 2"), 2048)
    paper = made.written().iloc[-1]
    assert paper["trained with"].startswith("paper: SF-Attn 8B Llama3, at 4096, 6144, 8192 of 8192 tokens")
    assert paper["2048"] == "4.66" and paper["512"] == "–"
    assert "| 4.66" in markdown(made)


def test_methods_beside_a_reference(rows: pd.DataFrame) -> None:
    found = losses(rows, "Table 1", 2048)
    made = comparison_table(
        found, {"sf": "SF", "full": "all"}, "full", {"sf": 0.25, "full": 1.0}, {"sf": 8.64}
    )
    sf, full = made.written().to_dict("records")
    low, high = (made.frame[part(ABOVE, end)].iloc[0] for end in ("low", "high"))
    assert (sf["attention in training"], sf["nats below full"]) == (
        "SF",
        f"-0.200 ({-high:+.3f} to {-low:+.3f})",
    )
    assert (sf["attention cost"], sf["paper"], full["paper"]) == ("0.2500", "8.64", "–")


def test_what_needs_no_training_stands_beside_methods_without_a_cost(rows: pd.DataFrame) -> None:
    found = losses(rows, "Table 1", 2048)
    made = comparison_table(found, {"base": "as it is", "sf": "SF"}, "sf", {"sf": 0.25})
    base, sf = made.written().to_dict("records")
    assert (base["attention cost"], base["seeds"], sf["seeds"]) == ("–", "0", "2")
    assert base["perplexity"] == f"{found.perplexities('base').item():.2f}"
    assert base["nats below sf"].startswith(f"{-found.lead('sf', 'base').estimate:+.3f} (")


def test_own_attention_is_compared_piece_by_piece(rows: pd.DataFrame) -> None:
    own = rows[(rows.method == "sf") & (rows.context == 2048)].assign(
        attention="own", nll=lambda r: r.nll + 0.5
    )
    *untrained, line = own_attention_table(rows, own, "Table 1", 2048, ["sf"]).frame.to_dict("records")
    assert [before["trained with"] for before in untrained] == ["base", "linear"]
    assert untrained[1]["with full attention"] == pytest.approx(np.exp(3.5))
    assert np.isnan(untrained[1]["with its own"]) and np.isnan(untrained[1]["nats added"])
    assert line["nats added"] == pytest.approx(0.5)
    assert line["with its own"] == pytest.approx(np.exp([2.6, 2.8]).mean())
