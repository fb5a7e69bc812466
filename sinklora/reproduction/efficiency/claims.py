"""What the measured training steps say of Fig. 1."""

from dataclasses import replace

import pandas as pd

from sinklora.reproduction.efficiency.study import BASELINE, EAGER_STEP, PAPER_RATIOS, SF
from sinklora.reproduction.names import EMBEDDED
from sinklora.reproduction.report.claims import Claim
from sinklora.reproduction.report.published import published_value

WORDS = {"seconds": "time", "peak_gib": "memory"}


def training_cost_claims(rows: pd.DataFrame, shape: str) -> list[Claim]:
    """Whether full attention takes the paper's times as much time and memory as SF-Attn.

    Held where it does at every length that both fit, in part where at some. Ours: the same for full attention
    that holds all its scores, as was usual. `rows` are those of `compare`.
    """
    wide = rows.pivot(index="tokens", columns="method", values=list(WORDS))
    claims = []
    for what, word in WORDS.items():
        times = published_value("Figure 1", PAPER_RATIOS[what])
        for method, by_whom, restated in (
            (BASELINE, "full attention", False),
            (EAGER_STEP, "full attention that holds all its scores", True),
        ):
            if (what, method) not in wide:
                continue
            claim = Claim(
                "Fig. 1",
                f"training with {by_whom} takes {times:g} times the {word} of SF-Attn",
                "not decided",
                table="efficiency",
                model=EMBEDDED if shape == "base" else shape,
                restated=restated,
            )
            claims.append(_at_every_length(claim, (wide[what, method] / wide[what, SF]).dropna(), times))
    return sorted(claims, key=lambda claim: claim.restated)


def _at_every_length(claim: Claim, ratios: "pd.Series[float]", least: float) -> Claim:
    """The claim with its outcome: whether ratios, one a length, reach a value."""
    if ratios.empty:
        return replace(claim, reason="there is no length that both fit")
    reached = ratios >= least
    outcome = "held" if reached.all() else "held in part" if reached.any() else "did not hold"
    ends = f"least {ratios.min():.2f}, most {ratios.max():.2f}"
    unit = f"times, mean over {ratios.index[0]} to {ratios.index[-1]} tokens ({ends})"
    return replace(
        claim, outcome=outcome, estimate=float(ratios.mean()), unit=unit, n=f"{len(ratios)} lengths"
    )
