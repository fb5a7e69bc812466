"""Which layers decode together, and by which kind of step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sinklora.cache.filling_step import FillingStep
from sinklora.cache.growing_step import GrowingStep
from sinklora.cache.ragged_step import RaggedStep
from sinklora.cache.sharing import hold
from sinklora.cache.steady_step import SteadyStep
from sinklora.cache.step import Step
from sinklora.cache.storage import TokenStorage


def step_together(layers: Sequence[TokenStorage]) -> list[Step]:
    """Let all layers that hold tokens step together with those of their shape, device and history."""
    alike: dict[object, list[TokenStorage]] = {}
    for layer in layers:
        if layer.rows is not None and layer.uneven:
            layer.bring_up_to_date()
            if min(layer.rows.tokens) > 0:  # a row's first token is read as a prompt
                alike.setdefault(str((layer.device, layer.kv_heads, layer.rows.tokens)), []).append(layer)
        elif layer.rows is not None and layer.positions is not None:
            layer.bring_up_to_date()
            rows, shape = layer.rows, layer.positions.shape
            history = (rows.tokens, rows.stored, rows.splits, rows.next_slots, type(layer.next_slot).__name__)
            alike.setdefault(str((layer.device, shape, layer.used, history)), []).append(layer)
    return [_step_of(members) for members in alike.values()]


def _step_of(layers: Sequence[TokenStorage]) -> Step:
    if layers[0].uneven:
        return _ragged_step_of(layers)
    full, rows = all(layer.is_full() for layer in layers), layers[0].counted()
    if not full and not (layers[0].constant_size and min(rows.tokens) > 0):
        return GrowingStep(layers)
    with torch.inference_mode(False), torch.no_grad():
        for layer in layers:
            layer.leave_inference_mode()
        return SteadyStep(layers) if full else FillingStep(layers)


def _ragged_step_of(layers: Sequence[TokenStorage]) -> Step:
    padded = [layer for layer in layers if layer.ragged is None]
    if padded:
        hold(padded, [layer.held_positions() >= 0 for layer in padded])
    with torch.inference_mode(False), torch.no_grad():
        for layer in layers:
            layer.leave_inference_mode()
        return RaggedStep(layers)
