"""How much attention each key received, re-computed from the log-sum-exp of a flash pass (CUDA).

The chunked pass of `scored_attention` holds blocks of scores; here FlashAttention gives outputs and the
logarithm of each row's softmax sum, and a Triton kernel adds up exp(q.k - log-sum-exp) column by column.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

LARGEST_HEAD = 256

ROWS, COLUMNS = 64, 64  # queries and keys of a block


def sum_columns(
    query: Tensor, key: Tensor, log_sum_exp: Tensor, scale: float, *, weights: Tensor | None = None
) -> Tensor:
    """Sums over queries and grouped heads of the causal softmax: [B, Hkv, L] in float32.

    `query` [B, H, Q, D], `key` [B, Hkv, L, D]; the first L - Q keys are seen by all queries, the others
    causally. `log_sum_exp` [B, H, Q] (natural logarithm) of each query's scores; `weights` [B, Q]: how much
    each query counts. Raises ValueError for heads larger than 256, ImportError without Triton.
    """
    check_kernel_inputs(query, log_sum_exp, "attend_and_sum")
    batch, queries = query.shape[0], query.shape[2]
    kv_heads, length = key.shape[1:3]
    import triton

    from sinklora.cache.column_sums_kernel import sum_columns_kernel

    query, key, log_sum_exp = query.contiguous(), key.contiguous(), log_sum_exp.float().contiguous()
    query_weights = (
        query.new_empty(0, dtype=torch.float32) if weights is None else weights.float().contiguous()
    )
    sums = torch.empty(batch, kv_heads, length, dtype=torch.float32, device=query.device)
    with torch.cuda.device_of(query):  # Triton launches on the current card
        sum_columns_kernel[(batch * kv_heads, triton.cdiv(length, COLUMNS))](
            query,
            key,
            log_sum_exp,
            query_weights,
            sums,
            kv_heads,
            queries,
            length,
            scale,
            weighted=weights is not None,
            **kernel_sizes(query, key),
        )
    return sums


def kernel_sizes(query: Tensor, key: Tensor) -> dict[str, int]:
    """What the kernels are compiled for: heads of a group, numbers of a head (filled up to a power of 2, as
    Triton's products need them), and queries and keys of a block.
    """
    import triton

    size = query.shape[3]
    filled = max(16, triton.next_power_of_2(size))
    groups = query.shape[1] // key.shape[1]
    return {"groups": groups, "size": size, "padded_size": filled, "rows": ROWS, "columns": COLUMNS}


def check_kernel_inputs(query: Tensor, log_sum_exp: Tensor, otherwise: str) -> None:
    """ValueError for inputs that a Triton kernel does not take, ImportError without Triton."""
    if query.shape[3] > LARGEST_HEAD:
        raise ValueError(
            f"head size {query.shape[3]}: the kernel holds at most {LARGEST_HEAD}; use {otherwise}"
        )
    if log_sum_exp.shape != query.shape[:3]:
        raise ValueError(f"log_sum_exp has shape {list(log_sum_exp.shape)}, expected {list(query.shape[:3])}")
    if find_spec("triton") is None:
        raise ImportError(f"no Triton, which comes with CUDA builds of torch: install it, or use {otherwise}")


def flash_with_log_sum_exp(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = True
) -> tuple[Tensor, Tensor]:
    """FlashAttention's output [B, H, Q, D] and log-sum-exp [B, H, Q] on CUDA, in half precision.

    Whole causal sequences, or, not `causal`, any number of queries and keys, all of which they see. Grouped
    keys and values are repeated for the length of the call.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    # PyTorch has no documented function that returns both; this is what its own SDPA calls.
    output, log_sum_exp, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scale
    )
    return output, log_sum_exp[..., : query.shape[2]]


def has_kernel(query: Tensor, key: Tensor) -> bool:
    """Whether flash and the kernel serve these inputs: a whole sequence in half precision on CUDA."""
    return query.shape[2] == key.shape[2] and has_kernel_for(query)


def has_kernel_for(query: Tensor) -> bool:
    """Whether flash and Triton's kernels serve such queries, if nothing is masked or all is causal."""
    size = query.shape[3]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and size <= LARGEST_HEAD
        and size % 8 == 0  # SDPA would fill others up; FlashAttention itself refuses them, and older cards
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and find_spec("triton") is not None
    )
