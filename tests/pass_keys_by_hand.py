"""Pass-key trials written down by hand, as a study measures them."""

import pandas as pd

from sinklora.reproduction.names import BASE


def pass_key_rows(correct: dict[str, dict[int, list[int]]], seed: int = 0) -> pd.DataFrame:
    """The trials of models, by length, from the first depth to the last: 1 for a right answer."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "seed": None if model == BASE else seed,
                "tokens": tokens,
                "depth": i / (len(trials) - 1),
                "answer": "12345",
                "wrote": " 12345",
                "correct": bool(right),
            }
            for model, lengths in correct.items()
            for tokens, trials in lengths.items()
            for i, right in enumerate(trials)
        ]
    ).astype({"seed": "Int64"})
