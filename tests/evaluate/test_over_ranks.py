"""Perplexity by several processes is that of one, and a process that fails ends them all."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perplexity_processes import VOCABULARY, documents

from several_processes import run_together
from sinklora.evaluate.over_ranks import balanced
from sinklora.evaluate.perplexity import measure_perplexity
from tiny_models import tiny_model

RANKS = 3


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_together(Path(__file__).with_name("perplexity_processes.py"), RANKS, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("asked", ["all", "one", "two"])
@pytest.mark.slow
def test_every_process_has_what_one_alone_finds(told: list[dict[str, Any]], asked: str) -> None:
    """Windows of other documents share no batch here, so that the numbers are the same to the last bit."""
    model = tiny_model("llama-gqa", vocab_size=VOCABULARY)
    given_documents = documents()[:1] if asked == "one" else documents()
    alone = measure_perplexity(model, given_documents, context=32, stride=16, progress=False).to_dict()
    for results in told[: 2 if asked == "two" else RANKS]:
        assert results[asked] == json.loads(json.dumps(alone))


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_its_words(told: list[dict[str, Any]]) -> None:
    failures = [results["failure"] for results in told]
    assert [failure["kind"] for failure in failures] == ["RuntimeError", "FloatingPointError", "RuntimeError"]
    assert all("process 1 of 3 failed: documents[" in failures[rank]["words"] for rank in (0, 2))


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 8))
def test_shares_hold_each_place_once_and_are_balanced(costs: list[int], shares: int) -> None:
    found = balanced(costs, shares)
    assert sorted(place for share in found for place in share) == list(range(len(costs)))
    sums = [sum(costs[place] for place in share) for share in found]
    # Whoever has most took its last document when it had least.
    assert max(sums) - min(sums) <= max(costs, default=0)
