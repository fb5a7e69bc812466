"""kvpress: a prompt is read inside its context, and what its hooks leave of the cache is decoded with."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from peer_sides.cache_subject import CacheSubject, PlainCache
from peer_sides.subject import CannotRunError, Setting

HOOK = "cache_position"  # what kvpress's hooks ask attention's arguments for


def open_subject(asked: dict[str, Any], setting: Setting) -> CacheSubject:
    """The press that `asked["press"]` names, with the setting's budget."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        setting.model, dtype=torch.float32, attn_implementation=asked.get("attention", "sdpa")
    )
    return CacheSubject(partial(PressedCache, model.eval(), asked, setting), setting)


class PressedCache(PlainCache):
    """Positions are told apart by the keys, which a press leaves as they were."""

    def __init__(self, model: Any, asked: dict[str, Any], setting: Setting) -> None:
        import kvpress
        from transformers import DynamicCache

        super().__init__(model, DynamicCache())
        options = {"compression_ratio": 1 - setting.budget}
        if asked["press"] == "SnapKVPress":  # the same window as ours
            options["window_size"] = max(1, min(64, int(setting.budget * setting.prompt) // 2))
        self.press = getattr(kvpress, asked["press"])(**options)
        self.ids = torch.zeros(1, 0, dtype=torch.long)
        self.kept: list[Tensor] | None = None

    def read(self, ids: Tensor) -> Tensor:
        self.ids = ids
        if ids.shape[1] <= getattr(self.press, "window_size", 0):
            return super().read(ids)  # too short for it: only to let libraries come up
        try:
            with self.press(self.model):
                return super().read(ids)
        except KeyError as error:
            if error.args != (HOOK,):
                raise
            import transformers

            raise CannotRunError(
                f"its hooks look for {HOOK!r} among attention's arguments, where transformers "
                f"{transformers.__version__} has none"
            ) from error

    def positions(self) -> list[Tensor] | None:
        if self.kept is None:
            self.kept = self._found()
        new = self.held() - self.kept[0].shape[1]
        behind = torch.arange(self.ids.shape[1], self.ids.shape[1] + new)
        return [torch.cat([kept, behind.expand(len(kept), -1)], 1) for kept in self.kept]

    def _found(self) -> list[Tensor]:
        """Where the keys that were kept lie among all keys of the prompt, by layer [Hkv, K]."""
        from transformers import DynamicCache

        whole = DynamicCache()
        self.model(self.ids, past_key_values=whole, use_cache=True, logits_to_keep=1)
        places = []
        for kept, all_ in zip(self.cache.layers, whole.layers, strict=True):
            heads = zip(kept.keys[0], all_.keys[0], strict=True)
            places.append(torch.stack([nearest(kept_keys, every) for kept_keys, every in heads]))
        return places


def nearest(some: Tensor, every: Tensor) -> Tensor:
    """The index of the nearest of `every` [N, D], by coordinates, for each of `some` [K, D]."""
    return torch.cdist(some, every, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
