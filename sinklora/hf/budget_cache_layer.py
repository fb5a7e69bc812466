"""`BudgetCacheLayer`: the layers of a `BudgetCache`, as transformers and pickle take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from sinklora.cache.layer import MARK, BudgetLayer
from sinklora.cache.policies import CachePolicy
from sinklora.cache.rotation import Rotation

NO_GRAPH = "a BudgetCache has constant shapes only when one token a row is decoded and every row is full"


class BudgetCacheLayer(BudgetLayer, CacheLayerMixin):
    """A `BudgetLayer` that transformers accepts as one of its own.

    `compiled`: it has all slots of its budget at once, and tells transformers that it can be compiled.
    """

    def __init__(
        self,
        policy: CachePolicy,
        prefill_chunk: int | None,
        rotation: Rotation | None,
        query_rotation: Rotation | None,
        compiled: bool,
    ) -> None:
        super().__init__(policy, prefill_chunk, rotation, query_rotation, in_model=True)
        self.constant_size = self.is_compileable = compiled

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As `BudgetLayer.update`; the values are marked as well."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        setattr(values, MARK, self)
        return keys, values

    attend_and_grow = torch.compiler.disable(
        BudgetLayer.attend_and_grow,
        reason=NO_GRAPH,
    )

    def __getstate__(self) -> dict[str, Any]:
        """All but what belongs to this process, the module that filled it and its part in a common tensor."""
        self.bring_up_to_date()
        state = {**self.__dict__, "_module": None, "step": None, "pair": None}
        if self.pair is not None:  # tensors that share memory are pickled one by one, each with all of it
            keys, values = (x.clone(memory_format=torch.contiguous_format) for x in self.pair.unbind(2))
            state |= {"keys": keys, "values": values}
        return state
