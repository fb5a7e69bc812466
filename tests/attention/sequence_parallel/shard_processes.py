"""What each process of `test_attend_shard.py` does: all cases, on its part of the rows, against whole rows."""

import json
import sys
from dataclasses import asdict, dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from several_processes import join_group
from sinklora.attention.dispatch import attend
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.patterns import FULL, S2, S2_WRAPPED, SF, SF_SHIFTED
from sinklora.attention.sequence_parallel.attend_shard import attend_shard
from sinklora.attention.sequence_parallel.shard import SequenceShard

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


# Neighbours differ in length, packing and dtype, so that each of these meets every pattern and group of heads.
LAYOUTS = [*product((25, 48), (False, True), ("float32",)), (25, True, "bfloat16")]
CASES = [
    Case(*case, *layout) for case, layout in zip(product(PATTERNS, HEADS, (2, 3, 4)), cycle(LAYOUTS), strict=False)
]


class SentBytes(TorchDispatchMode):
    """Counts what this process hands to all-to-all exchanges for others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d.alltoall_base_.default:
            self.bytes += args[1].numel() * args[1].element_size()
        return func(*args, **(kwargs or {}))


def run_case(case: Case, group: Any) -> dict[str, Any]:
    """Differences from one process's output and gradients, and the bytes sent forward and in all."""
    torch.manual_seed(case.tokens)
    heads = (case.heads[0], case.heads[1], case.heads[1])
    dtype = getattr(torch, case.dtype)
    whole = [torch.randn(2, h, case.tokens, size).to(dtype) for h, size in zip(heads, (8, 8, 6), strict=True)]
    upstream = torch.randn(2, heads[0], case.tokens, 6).to(dtype) / 4
    ids = torch.zeros(2, case.tokens, dtype=torch.long)
    if case.packed:
        ids = torch.randint(0, 2, (2, case.tokens)).cumsum(1) // 4
    pattern = PATTERNS[case.pattern]
    leaves = [x.float().requires_grad_() for x in whole]
    expected = attend(*leaves, pattern, document_ids=ids, backend="dense")
    expected_grads = torch.autograd.grad(expected, leaves, upstream.float())
    shard = SequenceShard.cut(ids, group)
    own = [part_of(shard, x).requires_grad_() for x in whole]
    with SentBytes() as sent:
        output = attend_shard(*own, pattern, shard)
        forward = sent.bytes
        grads = torch.autograd.grad(output, own, part_of(shard, upstream))
    found, right = [output, *grads], [expected, *expected_grads]
    differences = [
        float((x.float() - part_of(shard, y)).abs().max()) for x, y in zip(found, right, strict=True)
    ]
    return {"differences": differences, "forward_bytes": forward, "bytes": sent.bytes}


def part_of(shard: SequenceShard, whole: Tensor) -> Tensor:
    """A process's part of [B, H, N, D]."""
    return shard.part(whole.detach().transpose(1, 2)).transpose(1, 2)


def main(folder: Path) -> None:
    groups = join_group(folder)
    rank = dist.get_rank()
    results = [
        {**asdict(case), **run_case(case, groups[case.ranks])} for case in CASES if rank < case.ranks
    ]
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
