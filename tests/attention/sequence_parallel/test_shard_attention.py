"""Attention over cut rows: 2, 3 and 4 processes against one, forward and gradients, and what they send."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_processes import CASES, plan_of

from helpers import assert_close
from several_processes import run_together
from sinklora.attention.patterns import SF
from sinklora.attention.sequence_parallel.shard import SequenceShard
from sinklora.attention.sequence_parallel.shard_attention import attend_shard
from sinklora.attention.sequence_parallel.traffic import AttentionShape, sent_bytes

SCRIPT = Path(__file__).with_name("shard_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes said, all in one start."""
    folder = tmp_path_factory.mktemp("ranks")
    run_together(SCRIPT, 4, folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[list[dict[str, Any]]]:
    """Of every case, what each of its ranks found."""
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)]
    key = ("pattern", "heads", "ranks", "tokens", "packed", "dtype")
    by_case: dict[str, list[dict[str, Any]]] = {}
    for result in (result for rank in found for result in rank):
        by_case.setdefault(str([result[name] for name in key]), []).append(result)
    return list(by_case.values())


@pytest.mark.parametrize("place", range(len(CASES)), ids=[str(case) for case in CASES])
def test_several_processes_attend_as_one(results: list[list[dict[str, Any]]], place: int) -> None:
    ranks = results[place]
    assert len(ranks) == CASES[place].ranks
    atol = 1e-5 if CASES[place].dtype == "float32" else 2e-2
    for result in ranks:
        assert_close(torch.tensor(result["differences"]), torch.zeros(4), atol=atol)


@pytest.mark.parametrize("place", range(len(CASES)), ids=[str(case) for case in CASES])
def test_what_is_sent_is_what_the_plan_says(results: list[list[dict[str, Any]]], place: int) -> None:
    """Keys of 8 and values of 6 numbers a head; gradients of what was received go back, as many bytes."""
    case, ranks = CASES[place], results[place]
    shape = AttentionShape(*case.heads, 7, 4 if case.dtype == "float32" else 2)
    sent = [sent_bytes(plan_of(case), rank, shape) for rank in range(case.ranks)]
    for rank, result in enumerate(ranks):
        received = sum(row[rank] for row in sent)
        assert (result["forward_bytes"], result["bytes"]) == (sum(sent[rank]), sum(sent[rank]) + received)


def test_two_processes_to_a_row_are_given_its_halves(folder: Path) -> None:
    """Labels come from over the border; what fills a row up, and a document's first token, is not counted."""
    first, second, third, fourth = (
        json.loads((folder / f"rows-{rank}.json").read_text()) for rank in range(4)
    )
    for rank, said in enumerate((first, second, third, fourth)):
        assert (said["size"], said["place"], said["rows"]) == (2, rank // 2, 2)
    assert first["input_ids"] == [[0, 1, 2]] and second["input_ids"] == [[3, 4, 0]]
    assert second["position_ids"] == [[3, 4, 0]]
    assert first["targets"] == [[1, 2, 3]] and second["targets"] == [[4, -100, -100]]
    assert first["counted"] == second["counted"] == 4
    assert third["targets"] == [[11, 12, -100]] and fourth["targets"] == [[14, -100, -100]]
    assert fourth["position_ids"] == [[0, 1, 0]] and fourth["counted"] == 3


def test_rows_and_tokens_that_are_not_the_shards_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is exchanged: no other process is asked."""
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 2)
    query, shard = torch.zeros(1, 2, 6, 4), SequenceShard(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"shard's \[1, 4\] rows and tokens, got \[1, 6\]"):
        attend_shard(query, query, query, SF, shard)
