"""Next-token loss in chunks of positions, so that no [tokens, vocabulary] tensor is ever held.

A chunk's logits are computed again in the backward pass, or, on a base in bfloat16, turned into gradients at
once (`linear_cross_entropy`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sinklora.records.checks import check_counts
from sinklora.train.linear_cross_entropy import IGNORED, summed_linear_cross_entropy
from sinklora.train.sharded_rows import ShardedRows


def _summed_cross_entropy(head: torch.nn.Module, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(hidden).float(), labels, ignore_index=IGNORED, reduction="sum")


class ChunkedLoss:
    """Mean cross-entropy of a causal language model, the head applied to `chunk` positions at a time.

    The model is called as a whole with `logits_to_keep=1`, so that wrappers (DDP, DeepSpeed, PEFT) see
    an ordinary forward; the head's logits are recomputed in the backward pass. Raises ValueError on the
    first call if the model does more than its output embedding to the last hidden states (soft-capping,
    scaling). `fused` makes the gradients in the forward pass instead, in the dtype of autocast, for an output
    layer without bias that ZeRO-3 does not divide.
    """

    def __init__(self, chunk: int, *, fused: bool = False) -> None:
        check_counts(chunk=chunk)
        self.chunk = chunk
        self.fused = fused
        self.checked = False

    def __call__(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        counted: torch.Tensor | int | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """Loss (scalar, float32) for `input_ids` and `labels` (int64 [B, N]; -100 is not counted).

        The sum of losses over `counted` labels, those of a whole step; None: over the labels given here.
        """
        hidden, head = self._forward(model, input_ids=input_ids, **inputs)
        targets = labels[:, 1:]
        over = (targets != IGNORED).sum().clamp(min=1) if counted is None else counted
        return self._summed(head, hidden[:, :-1], targets) / over

    def of_shard(
        self, model: torch.nn.Module, rows: ShardedRows, counted: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """This process's summand of the loss of rows that are cut along the sequence (scalar, float32).

        `counted` as above; None: over the labels of these rows.
        """
        hidden, head = self._forward(model, **rows.inputs)
        return self._summed(head, hidden, rows.targets) / (
            max(rows.counted, 1) if counted is None else counted
        )

    def _forward(self, model: torch.nn.Module, **inputs: Any) -> tuple[torch.Tensor, torch.nn.Module]:
        """Last hidden states [B, N, W], and the output embedding."""
        outputs = model(logits_to_keep=1, output_hidden_states=True, use_cache=False, **inputs)
        inner: Any = getattr(model, "module", model)  # inside DDP or DeepSpeed
        head = inner.get_output_embeddings()
        hidden = outputs.hidden_states[-1]
        if not self.checked:
            _check_config(inner.config)
            _check_head(head, hidden[:, -1:], outputs.logits)
            self.checked = True
        return hidden, head

    def _summed(self, head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy summed over the targets [B, N] of hidden states [B, N, W]."""
        rows, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        weight: Any = head.weight
        # What ZeRO-3 divides is gathered where the layer is called, and nowhere else.
        if self.fused and getattr(head, "bias", None) is None and not hasattr(weight, "ds_id"):
            return summed_linear_cross_entropy(_in_autocast_dtype(rows), weight, targets, self.chunk)
        total = rows.new_zeros((), dtype=torch.float32)
        for part, target in zip(rows.split(self.chunk), targets.split(self.chunk), strict=True):
            total = total + checkpoint(_summed_cross_entropy, head, part, target, use_reentrant=False)
        return total


def _in_autocast_dtype(x: torch.Tensor) -> torch.Tensor:
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _check_config(config: Any) -> None:
    # Small logits pass through a soft cap almost unchanged, so the comparison of numbers alone would miss it.
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise ValueError(
                f"model: {name}={getattr(config, name)} changes its logits; "
                "the chunked loss does not apply to it"
            )


@torch.no_grad()
def _check_head(head: torch.nn.Module, hidden: torch.Tensor, logits: torch.Tensor) -> None:
    expected, last_logits = head(hidden).float(), logits[:, -1:].float()
    # Relative to the whole row: autocast may have rounded one of the two to bfloat16.
    if (expected - last_logits).norm() > 0.03 * last_logits.norm():
        raise ValueError(
            "model: its logits are not its output embedding applied to the last hidden states "
            "(soft-capping or scaling); "
            "the chunked loss does not apply to it"
        )
