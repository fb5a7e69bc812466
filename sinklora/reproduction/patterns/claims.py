"""What becomes of Figs. 2, 3, 4 and 7, and of the leak: counted on the definitions, measured on models."""

from dataclasses import replace

import pandas as pd
import torch

from sinklora.attention.patterns import find_pattern
from sinklora.evaluate.paired_effects import effect
from sinklora.reproduction.patterns.attention_study import SINKS
from sinklora.reproduction.patterns.attention_tables import FIRST, TOP, Uniform, measures
from sinklora.reproduction.patterns.study import pattern_names
from sinklora.reproduction.report.claims import Claim, Tested, family

HEADS = 4

ABOUT = 0.1  # of SF-Attn's density: a pattern of "about" that density


def definition_claims(num_tokens: int) -> list[Claim]:
    """Figs. 2, 4 and 7 on the patterns' own definitions, counted key by key."""
    sf, short, unsunk = (
        find_pattern(name).visible(HEADS, num_tokens) for name in ("sf", "short", "sf(sink_tokens=0)")
    )
    sinks = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    sinks[:, SINKS:] = False
    densities = [
        find_pattern(name).density(HEADS, num_tokens) for name in ("sf", *pattern_names(windows=False))
    ]
    alike = all(abs(density / densities[0] - 1) <= ABOUT for density in densities)
    counted = [
        (
            "Fig. 2",
            f"SF-Attn sees short windows in all heads, and the first {SINKS} tokens",
            sf,
            short | sinks,
        ),
        ("Fig. 4", "reassembled, all heads see the windows of unshifted ones", unsunk, short),
    ]
    n = f"by definition: {HEADS} heads, {num_tokens} tokens"
    claims = [
        Claim(item, sentence, _held(torch.equal(here, expected.expand_as(here))), n=n, restated=True)
        for item, sentence, here, expected in counted
    ]
    sentence = f"the other sparse patterns are as dense as SF-Attn, to {100 * ABOUT:g} %"
    return [*claims, Claim("Fig. 7", sentence, _held(alike), n=n, restated=True)]


def leak_claims(leaks: pd.DataFrame) -> list[Claim]:
    """Whether S²-Attn with its wrap-around sees the future as often as it must, and no other pattern does."""
    leaking_pairs = leaks.set_index("pattern")["pairs that see the future"]
    expected = leaks.set_index("pattern")["(G/2)² per shifted head"]
    wrapped = bool((leaking_pairs[expected > 0] == expected[expected > 0]).all() and (expected > 0).any())
    others = bool((leaking_pairs[expected == 0] == 0).all())
    return [
        Claim(
            "Discussion 5.1",
            sentence,
            _held(outcome),
            table="leak",
            n="1 pattern" if n == 1 else f"{n} patterns",
            restated=True,
        )
        for sentence, outcome, n in (
            (
                "the shift's wrap-around lets (G/2)² pairs of each shifted head see the future",
                wrapped,
                (expected > 0).sum(),
            ),
            ("no pattern without it sees the future", others, (expected == 0).sum()),
        )
    ]


def attention_claims(rows: pd.DataFrame) -> list[Claim]:
    """Whether the first tokens, and the most attended keys, receive more attention than uniform attention
    gives them, for each model of the rows of `measure_attention`; the unit is the document.
    """
    effects: dict[Claim, Tested] = {}
    for model, of_model in rows.groupby("model", sort=False):
        values, uniform = measures(of_model), Uniform.of(of_model).by_measure()
        for name, whom in (
            (FIRST, f"the first {SINKS} tokens receive"),
            (TOP, "a tenth of the keys receives"),
        ):
            claim = Claim(
                "Fig. 3",
                f"{whom} more attention than uniform attention gives",
                "not decided",
                unit="percentage points",
                table="sink_mass_by_layer",
                model=str(model),
                restated=True,
            )
            lead = values[name].groupby(of_model.document).mean() - uniform[name]
            excess = effect(lambda mean: mean, lead.to_numpy()[None])
            effects[replace(claim, n=f"{excess.documents} documents")] = excess
    return family(effects)


def _held(true: bool) -> str:
    return "held" if true else "did not hold"
