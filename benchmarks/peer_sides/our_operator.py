"""sinklora's patterns on a model in training."""

from __future__ import annotations

from typing import Any

import torch

from peer_sides.operator_subject import OperatorSubject
from peer_sides.subject import Setting


def open_subject(asked: dict[str, Any], setting: Setting) -> OperatorSubject:
    """The pattern that `asked["pattern"]` names."""
    from transformers import AutoModelForCausalLM

    import sinklora

    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32)
    model.config.use_cache = False
    sinklora.use_pattern(model, asked["pattern"])
    return OperatorSubject(model, setting)
