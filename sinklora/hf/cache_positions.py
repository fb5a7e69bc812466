"""Positions inside a BudgetCache (StreamingLLM, arXiv 2309.17453, section 3.2), and how far positions may go.

A model rotates queries and keys to their positions in the text before a cache sees them. Here that is taken
off, exactly and with the model's own functions, so that kept tokens can count 0, 1, 2, ... instead. For
policies that move queries, these are turned further.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from sinklora.cache.layer import BudgetLayer
from sinklora.cache.policies import CachePolicy
from sinklora.cache.scored_attention import precise
from sinklora.hf.device import probing_device
from sinklora.hf.rope import is_rotary
from sinklora.hf.rope_scaling import LOCAL_LAYERS, rope_entries

# Their frequencies depend on the longest input so far, so that what was written cannot be turned back later.
CHANGING_FREQUENCIES = ("dynamic", "longrope")


class Purpose(NamedTuple):
    """What asks for a model's rotation, and what to do without it: for messages."""

    asked_by: str
    remedy: str

    @classmethod
    def of_policy(cls, policy: CachePolicy) -> Purpose:
        """That of a policy which moves queries."""
        return cls(f"policy={policy}", "take a policy that leaves queries where they are, such as H2O")


INSIDE_CACHE = Purpose("positions='cache'", "leave it at positions='text'")


class RotaryPositions:
    """The rotary position embeddings of a model, apart from it: to put positions on, and to take them off.

    `rotary` is a copy of the module that computes cosines and sines, `home` the name of the module whose
    `apply_rotary_pos_emb` turns queries and keys by them. All layers of a cache share one.
    """

    def __init__(self, rotary: nn.Module, home: str) -> None:
        self.rotary, self.home = rotary, home
        self._table: tuple[Tensor, Tensor] | None = None  # cosines and sines [positions, D] of the first ones

    @classmethod
    def of_model(cls, model: PreTrainedModel | None, purpose: Purpose = INSIDE_CACHE) -> RotaryPositions:
        """Those of a model; ValueError with the reason where queries and keys cannot be turned by them.

        None: there is a config alone, which is one such reason.
        """
        if model is None:
            raise ValueError(
                f"{purpose.asked_by}: needs the model itself, not its config, to turn its queries and keys"
            )
        kind = f"model_type={model.config.model_type!r}"
        modules: list[Any] = [module for module in model.modules() if hasattr(module, "inv_freq")]
        if not modules and any(is_rotary(module) for module in model.modules()):
            raise ValueError(
                f"{purpose.asked_by}: {kind} has rotary position embeddings for each layer type, where a "
                f"cache turns all layers by the same; {purpose.remedy}"
            )
        if not modules or not getattr(model.config, "rope_parameters", None):
            raise ValueError(
                f"{purpose.asked_by}: {kind} has no rotary position embeddings that could be turned to other "
                f"positions; {purpose.remedy}"
            )
        rotary = modules[0]
        if rotary.inv_freq.is_meta:
            raise ValueError(
                f"{purpose.asked_by}: the model's rotary position embeddings are on meta: load its weights "
                "first, then make the cache"
            )
        rope_type = getattr(rotary, "rope_type", "default")
        if rope_type in CHANGING_FREQUENCIES:
            raise ValueError(
                f"{purpose.asked_by}: rope_type={rope_type!r} changes its frequencies with the length of the "
                "input, so what was written cannot be turned; take the model without this scaling, or "
                f"{purpose.remedy}"
            )
        home = type(rotary).__module__
        if any(not torch.equal(m.inv_freq, rotary.inv_freq) for m in modules) or not hasattr(
            sys.modules[home], "apply_rotary_pos_emb"
        ):
            raise ValueError(
                f"{purpose.asked_by}: the layers of {kind} do not all turn keys in one known way; "
                f"{purpose.remedy}"
            )
        return cls(copy.deepcopy(rotary), home)

    def rotated(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        """Queries or keys [B, H, N, D] without positions, put at `positions` [B|1, H|1, N] below `length`."""
        exact = x.to(precise(x.dtype))
        cos, sin = self._first(length, exact)
        return self._turn(exact, positions, cos, sin).to(x.dtype)

    def turned(self, x: Tensor, by: Tensor, length: int) -> Tensor:
        """Queries or keys [B, H, N, D] that have positions, put `by` [B|1, H|1, N] below `length` further on.

        The model has scaled them already if it does (YaRN): they are turned, and stay as long as they are.
        """
        exact = x.to(precise(x.dtype))
        cos, sin = (angles[:length] for angles in self._first(length, exact))
        scale = torch.hypot(cos, sin)
        return self._turn(exact, by, cos / scale, sin / scale).to(x.dtype)

    def _turn(self, x: Tensor, angles: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn [B, H, N, D] by `angles` [B|1, H|1, N], rows of `cos` and `sin`."""
        batch, heads, count, size = x.shape
        if angles.shape[1] == 1:
            at, rows = angles[:, 0].expand(batch, count), x
        else:
            at, rows = angles.reshape(batch * heads, count), x.reshape(batch * heads, 1, count, size)
        turned, _ = self._apply(rows, rows[:, :0], cos[at], sin[at])
        return turned.reshape(x.shape)

    def _first(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of at least so many first positions; every step asks for the same few."""
        known = self._table[0] if self._table is not None else like.new_empty(0)
        if len(known) < length or (known.dtype, known.device) != (like.dtype, like.device):
            positions = torch.arange(length + length // 4 + 16, device=like.device)[None]
            cos, sin = self.rotary(like, positions)
            self._table = cos[0], sin[0]
        assert self._table is not None
        return self._table

    def unrotated(self, query: Tensor, key: Tensor, position_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Query and key [B, H or Hkv, N, D] as they were before the model turned them; dtypes stay.

        `position_ids` [B or 1, N]: where the model put them. ValueError where they are not known.
        """
        if position_ids is None or position_ids.ndim != 2:
            raise ValueError(
                "positions='cache': the model does not tell its attention the position_ids, so that keys "
                "cannot be turned; leave it at positions='text'"
            )
        # In the model's dtype: an angle that was rounded is turned back as it was rounded.
        cos, sin = (x.to(precise(x.dtype)) for x in self.rotary(key, position_ids.expand(len(key), -1)))
        norm = cos.square() + sin.square()  # not 1 where rounded, or scaled (YaRN)
        query_back, key_back = self._apply(
            query.to(precise(query.dtype)), key.to(precise(key.dtype)), cos / norm, -sin / norm
        )
        return query_back.to(query.dtype), key_back.to(key.dtype)

    def _apply(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = sys.modules[self.home].apply_rotary_pos_emb(query, key, cos, sin)
        return turned


@torch.no_grad()
def check_rotation(
    model: PreTrainedModel,
    cache: Cache,
    layers: Sequence[BudgetLayer],
    purpose: Purpose = INSIDE_CACHE,
    turning: RotaryPositions | None = None,
) -> None:
    """ValueError unless keys without positions are the same wherever the same tokens stand.

    With `turning`, keys that have positions must be the same once they are turned to the same ones.
    `cache` (its layers: `layers`) must be empty and keep everything; it is filled by one call of the model
    with two rows of four tokens. The first of each row is compared: it sees nothing but itself, so that in
    every layer it is the same to the last bit, while later tokens drift apart by rounding. Found are layers
    without positions, and turns that are not the model's own.
    """
    kind = f"model_type={model.config.model_type!r}"
    try:
        _fill(model, cache)
        unturned = [index for index, layer in enumerate(layers) if not _agrees(layer, turning)]
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"{purpose.asked_by}: {kind} failed on a few tokens whose keys were turned ({error}): "
            f"most likely it turns a part of each head alone; {purpose.remedy}"
        ) from error
    if unturned:
        raise ValueError(
            f"{purpose.asked_by}: layer {unturned[0]} of {kind} does not turn its keys as its rotary "
            f"position embeddings say (it may have none); {purpose.remedy}"
        )


def _fill(model: PreTrainedModel, cache: Cache) -> None:
    """Call a model with two rows of the same four tokens, which stand at 0 and at 9."""
    device = probing_device(model)
    tokens = torch.arange(1, 5, device=device) % model.config.vocab_size
    positions = torch.arange(4, device=device) + torch.tensor([[0], [9]], device=device)
    model(input_ids=tokens.expand(2, -1), position_ids=positions, past_key_values=cache, use_cache=True)


def _agrees(layer: BudgetLayer, turning: RotaryPositions | None) -> bool:
    """Whether a layer's first keys are the same in both rows, once they stand at the same position."""
    assert layer.keys is not None
    here, there = layer.keys[:, :, :1].double()
    if turning is not None:
        here = turning.turned(here[None], torch.full((1, 1, 1), 9, device=here.device), 10)[0]
    tolerance = 1e-3 if layer.keys.dtype in (torch.float32, torch.float64) else 0.02
    return bool((here - there).abs().max() <= tolerance * here.abs().max())


def trained_length(config: PreTrainedConfig) -> int | None:
    """The positions that a model was trained for, or extended to; None where the config does not say.

    Where layer types have positions of their own, local attention does not count.
    """
    length: int | None = getattr(config, "max_position_embeddings", None)
    if length is None:
        return None
    entries = rope_entries(getattr(config, "rope_parameters", None) or {})
    reached = [_reach(entry, config, length) for name, entry in entries.items() if name not in LOCAL_LAYERS]
    return min(reached, default=length)


def _reach(parameters: dict[str, Any], config: PreTrainedConfig, length: int) -> int:
    """How far positions of these RoPE parameters go, in a config that says `length`."""
    factor = parameters.get("factor")
    if not isinstance(factor, int | float):
        return length
    original = parameters.get("original_max_position_embeddings")
    if parameters.get("rope_type") == "dynamic":
        original = getattr(config, "original_max_position_embeddings", None) or length
    return length if original is None else max(length, round(original * factor))
