"""Rows that do not come out even: every process has as many batches, and each row is counted once."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from helpers import assert_close
from sinklora.train.whole_rounds import RowsAndBlanks, WholeRounds
from tiny_training import make_place, spec_in, train_alone

SIZES = pytest.mark.parametrize(
    ("rows", "size", "at_once", "accumulated"),
    [(3, 1, 2, 1), (5, 2, 2, 1), (7, 2, 3, 2), (1, 2, 4, 1), (3, 2, 1, 2), (8, 2, 2, 2), (9, 1, 2, 4)],
)


def parts(batches: Iterable[list[int]], size: int) -> list[list[list[int]]]:
    """So many batches at a time; the last part may have fewer."""
    all_of_them = list(batches)
    return [all_of_them[first : first + size] for first in range(0, len(all_of_them), size)]


def shares(rows: int, size: int, at_once: int) -> list[list[list[int]]]:
    """The batches of each process, as accelerate deals them out."""
    rounds = WholeRounds(BatchSampler(range(rows), size, False), at_once)
    dealt = [BatchSamplerShard(rounds, at_once, place) for place in range(at_once)]
    found = [list(share) for share in dealt]
    assert [len(share) for share in dealt] == [len(batches) for batches in found]
    return found


@SIZES
def test_each_row_is_counted_once(rows: int, size: int, at_once: int, accumulated: int) -> None:
    found = shares(rows, size, at_once)
    assert len({len(batches) for batches in found}) == 1, "processes wait for one another"
    assert {len(batch) for batches in found for batch in batches} == {size}
    counted = [row for batches in found for batch in batches for row in batch if row >= 0]
    assert sorted(counted) == list(range(rows))


@SIZES
def test_a_step_is_the_mean_over_what_one_process_sees(
    rows: int, size: int, at_once: int, accumulated: int
) -> None:
    loss_of = np.random.default_rng(0).normal(size=rows)

    def loss(batch: list[int]) -> float:
        """The mean over the rows with labels, 0 where there are none, as that of `ChunkedLoss`."""
        return float(sum(loss_of[row] for row in batch if row >= 0) / max(sum(row >= 0 for row in batch), 1))

    alone = parts(BatchSampler(range(rows), size, False), accumulated * at_once)
    expected = [np.mean([loss(batch) for batch in step]) for step in alone]
    rounds = WholeRounds(BatchSampler(range(rows), size, False), at_once)
    steps = [parts(batches, accumulated) for batches in shares(rows, size, at_once)]
    for epoch in range(2):
        found = [
            np.mean([loss(batch) for batches in step for batch in batches])
            * rounds.correction(epoch * len(expected) + number, accumulated)
            for number, step in enumerate(zip(*steps, strict=True))
        ]
        assert_close(found, expected, atol=1e-12)


def test_a_blank_row_is_a_row_without_labels() -> None:
    row = {"input_ids": torch.tensor([3, 4]), "labels": torch.tensor([-100, 4])}
    rows = RowsAndBlanks([row, row])
    assert len(rows) == 2 and rows[1] is row
    assert rows[~1]["labels"].tolist() == [-100, -100]
    assert rows[~1]["input_ids"].tolist() == [3, 4] and row["labels"].tolist() == [-100, 4]


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"batch_size=4: expected a multiple .* = 2 × 3$"):
        train_alone(place, dataclasses.replace(spec_in(place), batch_size=4, micro_batch_size=2))
    assert not (place / "alone").exists() and not (place / "cache").exists()
