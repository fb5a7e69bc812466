"""Training steps of sinklora: LoRA with embeddings and norms, a pattern, the chunked loss; in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peer_sides.subject import Answers, Setting
from sinklora.evaluate.timing import timed


def open_subject(asked: dict[str, Any], setting: Setting) -> OurSteps:
    """The pattern that `asked["pattern"]` names."""
    return OurSteps(asked["pattern"], setting)


class OurSteps:
    """A model with its adapter, whose optimizer goes on from step to step."""

    def __init__(self, pattern: str, setting: Setting) -> None:
        from transformers import AutoModelForCausalLM

        import sinklora
        from sinklora.train.loss import ChunkedLoss

        model: Any = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32)
        self.model = sinklora.lora_plus(sinklora.use_pattern(model, pattern), rank=8, alpha=16).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-5, fused=True)
        self.loss, self.setting = ChunkedLoss(2048), setting

    def answers(self) -> Answers:
        """The first step's loss."""
        return Answers({}, {"loss": self._step(self.setting.ids()[:, : self.setting.prompt])})

    def laps(self, warm: bool = False) -> dict[str, list[float]]:
        """Seconds of a step."""
        ids = self.setting.ids()[:, : 32 if warm else self.setting.prompt]
        return {"step": list(timed(lambda: self._step(ids), "cpu"))}

    def _step(self, ids: Tensor) -> float:
        loss = self.loss(self.model, ids, ids)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())
