"""A run's own claims beside the committed ones."""

from pathlib import Path

import pytest

from sinklora.records.files import write_json
from sinklora.reproduction.report.claims import Claim, claims_to_json
from sinklora.reproduction.report.profile_agreement import agreement, print_agreement

HELD = Claim("Table 1", "SF-Attn is better", "held", 0.5, 0.25, 0.75, "nats", model="small")
LOST = Claim("Table 1", "SF-Attn is better", "did not hold", -0.5, -0.75, -0.25, "nats", model="small")
OPEN = Claim("Table 7", "sinks help", "not decided", model="small")


def test_claims_stand_beside_those_of_the_same_sentence_and_model() -> None:
    other_model = Claim("Table 1", "SF-Attn is better", "held", model="large")
    found = agreement([HELD, OPEN], [LOST, other_model])
    assert found["this run"].tolist() == ["confirmed", "not decided"]
    assert found["committed"].tolist() == ["contradicted", "–"]
    assert found["numbers"].tolist() == ["+0.5 (+0.25 to +0.75) nats", "–"]
    assert found["committed numbers"].tolist() == ["-0.5 (-0.75 to -0.25) nats", "–"]


def test_nothing_claimed_is_an_empty_table() -> None:
    assert agreement([], [HELD]).empty


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_the_table_is_printed_and_a_readers_own_is_written(
    profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, claims in {"full": [LOST], profile: [HELD, OPEN]}.items():
        (tmp_path / name / "claims").mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / name / "claims" / "02.json", claims_to_json(claims))
    print_agreement(tmp_path, profile)
    printed = capsys.readouterr().out
    assert "confirmed: 1; not decided: 1" in printed
    own = tmp_path / profile / "claims.md"
    assert own.exists() == (profile == "quick")
    if profile == "quick":
        assert "contradicted" in own.read_text(encoding="utf-8")
