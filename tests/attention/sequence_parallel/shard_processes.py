"""What each process of `test_shard_attention.py` does: all cases, its part of rows against whole rows."""

import json
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from several_processes import join_group
from sinklora.attention.dispatch import attend
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.patterns import FULL, S2, S2_WRAPPED, SF, SF_SHIFTED
from sinklora.attention.sequence_parallel.plan import SequencePlan
from sinklora.attention.sequence_parallel.shard import SequenceShard
from sinklora.attention.sequence_parallel.shard_attention import attend_shard
from sinklora.train.sharded_rows import SequenceGroups, cut_rows

PATTERNS = {
    "sf": SF,
    "sf_shifted": SF_SHIFTED,
    "s2": S2,
    "s2_wrapped": S2_WRAPPED,
    "full": FULL,
    "group does not divide a shard": AttentionPattern(5, 3),
    "windows longer than a shard": AttentionPattern(14, 2, 0.5),
    "windows shorter than sinks": AttentionPattern(2, 5, 0.5),
}
HEADS = ((4, 4), (6, 2), (4, 1))


@dataclass(frozen=True)
class Case:
    pattern: str
    heads: tuple[int, int]
    ranks: int
    tokens: int
    packed: bool
    dtype: str


# Neighbours differ in heads, length, packing and dtype, so that these meet different patterns and ranks.
LAYOUTS = [*product((25, 48), (False, True), ("float32",)), (25, True, "bfloat16")]
CASES = [
    Case(pattern, HEADS[(place + place // 3) % 3], ranks, *LAYOUTS[place % 5])
    for place, (pattern, ranks) in enumerate(product(PATTERNS, (2, 3, 4)))
]


class SentBytes:
    """Counts what this process hands over to be sent, on its way to the function that sends it."""

    def __init__(self) -> None:
        self.bytes = 0
        self.send = dist.all_to_all_single

    def __call__(self, received: Tensor, sent: Tensor, *sizes: Any, **options: Any) -> Any:
        self.bytes += sent.numel() * sent.element_size()
        return self.send(received, sent, *sizes, **options)


def documents_of(case: Case) -> Tensor:
    """Documents of eight tokens on average, or one a row."""
    ids = torch.zeros(2, case.tokens, dtype=torch.long)
    steps = torch.randint(0, 2, ids.shape, generator=torch.Generator().manual_seed(case.tokens))
    return steps.cumsum(1) // 4 if case.packed else ids


def plan_of(case: Case) -> SequencePlan:
    """Who needs what in a case, its rows filled up to a multiple of its ranks."""
    ids = torch.nn.functional.pad(documents_of(case), (0, -case.tokens % case.ranks), value=-1)
    return SequencePlan(PATTERNS[case.pattern], case.ranks, *case.heads, ids)


def run_case(case: Case, group: Any, counted: SentBytes) -> dict[str, Any]:
    """Differences from one process's output and gradients, and the bytes sent forward and in all."""
    torch.manual_seed(case.tokens)
    heads = (case.heads[0], case.heads[1], case.heads[1])
    dtype = getattr(torch, case.dtype)
    whole = [torch.randn(2, h, case.tokens, size).to(dtype) for h, size in zip(heads, (8, 8, 6), strict=True)]
    upstream = torch.randn(2, heads[0], case.tokens, 6).to(dtype) / 4
    ids, pattern = documents_of(case), PATTERNS[case.pattern]
    leaves = [x.float().requires_grad_() for x in whole]
    expected = attend(*leaves, pattern, document_ids=ids, backend="dense")
    expected_grads = torch.autograd.grad(expected, leaves, upstream.float())
    shard = SequenceShard.cut(ids, group)
    own = [part_of(shard, x).requires_grad_() for x in whole]
    before = counted.bytes
    output = attend_shard(*own, pattern, shard)
    forward = counted.bytes
    grads = torch.autograd.grad(output, own, part_of(shard, upstream))
    found, right = [output, *grads], [expected, *expected_grads]
    differences = [
        float((x.detach().float() - part_of(shard, y)).abs().max()) for x, y in zip(found, right, strict=True)
    ]
    return {"differences": differences, "forward_bytes": forward - before, "bytes": counted.bytes - before}


def part_of(shard: SequenceShard, whole: Tensor) -> Tensor:
    """A process's part of [B, H, N, D]."""
    return shard.part(whole.detach().transpose(1, 2)).transpose(1, 2)


def rows_of_two() -> dict[str, Any]:
    """Four processes, two to a row of five tokens, the second of which begins a document at its fourth."""
    groups = SequenceGroups.of(2)
    ids = torch.arange(5)[None] + 10 * groups.place
    positions = None if groups.place == 0 else torch.tensor([[0, 1, 2, 0, 1]])
    labels = ids.clone() if positions is None else torch.where(positions == 0, -100, ids)
    rows = cut_rows(groups.group, ids, labels, positions)
    found = {
        "input_ids": rows.inputs["input_ids"],
        "position_ids": rows.inputs["position_ids"],
        "targets": rows.targets,
    }
    numbers = {"size": groups.size, "place": groups.place, "rows": groups.rows, "counted": rows.counted}
    return {name: tensor.tolist() for name, tensor in found.items()} | numbers


def main(folder: Path) -> None:
    groups = join_group(folder)
    rank, counted = dist.get_rank(), SentBytes()
    dist.all_to_all_single = counted  # the module's own: `exchange` sends through it
    results = [
        {**asdict(case), **run_case(case, groups[case.ranks], counted)} for case in CASES if rank < case.ranks
    ]
    (folder / f"rows-{rank}.json").write_text(json.dumps(rows_of_two()))
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
