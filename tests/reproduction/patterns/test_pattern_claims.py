"""Claims about patterns are counted, and those about models measured: each turns where its numbers do."""

import pandas as pd
import pytest
import torch

from sinklora.reproduction.patterns.attention_study import ALL, ASIDE, KEY_SHARES, curve_column
from sinklora.reproduction.patterns.claims import attention_claims, definition_claims, leak_claims
from sinklora.reproduction.patterns.study import leak_table


@pytest.mark.parametrize("num_tokens", [32, 64])
def test_the_pictures_are_what_the_paper_draws(num_tokens: int) -> None:
    claims = definition_claims(num_tokens)
    assert [(claim.item, claim.outcome) for claim in claims] == [
        ("Fig. 2", "held"),
        ("Fig. 4", "held"),
        ("Fig. 7", "held"),
    ]
    assert all(claim.restated for claim in claims)


@pytest.mark.parametrize(("more", "outcome"), [(0.08, "held"), (-0.08, "held"), (0.13, "did not hold")])
def test_a_tenth_of_the_density_is_about_as_much(
    more: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted:
        """A pattern of which one density is given, and nothing is drawn."""

        def __init__(self, name: str) -> None:
            self.name = name

        def visible(self, heads: int, tokens: int) -> torch.Tensor:
            return torch.zeros(heads, tokens, tokens, dtype=torch.bool)

        def density(self, heads: int, tokens: int) -> float:
            return 0.25 * (1 + more) if self.name == "random" else 0.25

    monkeypatch.setattr("sinklora.reproduction.patterns.claims.find_pattern", Counted)
    [claim] = [claim for claim in definition_claims(16) if claim.item == "Fig. 7"]
    assert claim.outcome == outcome


def test_a_leak_is_counted() -> None:
    leaks = leak_table(["s2_wrapped", "s2", "sf"], 16)
    assert [claim.outcome for claim in leak_claims(leaks)] == ["held", "held"]
    counted = "pairs that see the future"
    missing = leaks.assign(**{counted: leaks[counted] - (leaks.pattern == "s2_wrapped")})
    assert [claim.outcome for claim in leak_claims(missing)] == ["did not hold", "held"]
    leaking = leaks.assign(**{counted: leaks[counted] + (leaks.pattern == "sf")})
    assert [claim.outcome for claim in leak_claims(leaking)] == ["held", "did not hold"]
    assert leak_claims(leaks[leaks.pattern != "s2_wrapped"])[0].outcome == "did not hold"


def rows_of(model: str, first: list[float], power: float) -> pd.DataFrame:
    """A document a value, of one passage and layer: what its first four tokens receive."""
    return pd.DataFrame(
        {
            "model": model,
            "document": f"{number}",
            "start": 1,
            "tokens": 512,
            "layer": 0,
            "first 4, head 0": share,
        }
        | {curve_column(kind, s): s**power for kind in (ALL, ASIDE) for s in KEY_SHARES}
        for number, share in enumerate(first)
    )


def test_sinks_and_heavy_hitters_are_measured_against_uniform_attention() -> None:
    # Uniform attention gives 1.85 % to the first four tokens and 33 % to a tenth of the keys.
    rows = pd.concat(
        [
            rows_of("with sinks", [0.3, 0.35, 0.4, 0.38], 0.3),
            rows_of("without", [0.009, 0.011, 0.010, 0.008], 0.9),
            rows_of("unclear", [0.01, 0.03, 0.025, 0.012], 0.3),
        ],
        ignore_index=True,
    )
    claims = attention_claims(rows)
    assert [(claim.model, claim.outcome) for claim in claims] == [
        ("with sinks", "held"),
        ("with sinks", "held"),
        ("without", "did not hold"),
        ("without", "did not hold"),
        ("unclear", "not decided"),
        ("unclear", "held"),
    ]
    assert claims[0].estimate == pytest.approx(35.75 - 1.851, abs=1e-2)
    assert claims[0].n == "4 documents" and claims[0].item == "Fig. 3"


def test_passages_and_layers_of_a_document_are_no_units() -> None:
    shares = [0.01, 0.03, 0.025, 0.012]
    one = rows_of("a model", shares, 0.3)
    more = [
        rows_of("a model", [share + sign * 0.002 for share in shares], 0.3).assign(start=start, layer=layer)
        for start, layer, sign in ((1, 0, 1), (1, 1, -1), (600, 0, 1), (600, 1, -1))
    ]
    for alone, several in zip(attention_claims(one), attention_claims(pd.concat(more)), strict=True):
        assert several.n == alone.n == "4 documents" and several.outcome == alone.outcome
        numbers = [(claim.estimate, claim.low or 0, claim.high or 0) for claim in (alone, several)]
        assert numbers[1] == pytest.approx(numbers[0])
