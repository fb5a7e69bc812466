"""A model in training whose attention is a pattern: its logits, gradients from the future, a step's time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peer_sides.subject import Answers, Setting
from sinklora.evaluate.timing import timed


class OperatorSubject:
    """A model that attends by the pattern in question; called with tokens [1, N], or with embeddings."""

    def __init__(self, model: Any, setting: Setting) -> None:
        self.model, self.setting = model.train(), setting

    def answers(self) -> Answers:
        """Logits [N, V]; `future`: the largest gradient that the first half window receives from later
        tokens, over the largest from its own.
        """
        ids = self.setting.ids()[:, : self.setting.prompt]
        embeddings = self.model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = self.model(inputs_embeds=embeddings, attention_mask=torch.ones_like(ids)).logits[0]
        half = ids.shape[1] // 8  # windows are a quarter
        [gradient] = torch.autograd.grad(logits[:half].logsumexp(-1).sum(), embeddings)
        size = gradient[0].abs().amax(-1)
        return Answers({"logits": logits}, {"future": float(size[half:].max() / size[:half].max())})

    def laps(self, warm: bool = False) -> dict[str, list[float]]:
        """Seconds of a forward and a backward pass."""
        ids = self.setting.ids()[:, : 32 if warm else self.setting.prompt]
        return {"step": list(timed(lambda: self._step(ids), "cpu"))}

    def _step(self, ids: Tensor) -> None:
        self.model.zero_grad()
        self.model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
