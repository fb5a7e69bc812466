"""Another attention for the length of a call: forward hooks on models that are called with a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from sinklora.hf.attention import CACHE_NAME


class CalledCache(Cache):
    """A cache that is told when a model is called with it, and when the call is over."""

    def begin_call(self, model: PreTrainedModel, options: Mapping[str, Any]) -> None:
        """Before anything is computed; what it raises is what the caller of the model gets.

        `options`: what the model was called with by name.
        """
        raise NotImplementedError

    def end_call(self) -> None:
        """After a call that raised nothing."""
        raise NotImplementedError


class AttentionSwitch:
    """Lets a model attend through a `CalledCache` while it is called with one, and by its own attention else.

    The config names `CACHE_NAME` for the length of the call and what it named before afterwards, also where
    the call raises. After an interruption that PyTorch runs no hooks for (Ctrl-C), the next call of the model
    restores it first. Hooks of all transformers models in a model share one switch, because some
    architectures reach their decoder past the model around it; copies and pickles of the model keep theirs.
    """

    def __init__(self) -> None:
        self._replaced: tuple[PreTrainedConfig, str] | None = None
        self._cache: CalledCache | None = None
        self._called: PreTrainedModel | None = None

    @classmethod
    def is_on(cls, transformer: PreTrainedModel) -> bool:
        """Whether a model, or the model that it is a copy of, was given a switch."""
        hooks = transformer._forward_pre_hooks.values()
        return any(isinstance(getattr(hook, "__self__", None), cls) for hook in hooks)

    def install(self, transformer: PreTrainedModel) -> None:
        """Put the switch on a model that has none."""
        for module in transformer.modules():
            if isinstance(module, PreTrainedModel):
                module.register_forward_pre_hook(self.enter, with_kwargs=True)
                module.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook before a call."""
        cache = next((value for value in (*kwargs.values(), *args) if isinstance(value, CalledCache)), None)
        if cache is not None and cache is self._cache and module is not self._called:
            return  # within the call of the model around this one
        self._restore()
        if cache is not None:
            cache.begin_call(module, kwargs)
            self._cache, self._called = cache, module
            self._replaced = module.config, module.config._attn_implementation
            module.config._attn_implementation = CACHE_NAME

    def leave(self, module: PreTrainedModel, args: tuple[Any, ...], output: Any) -> None:
        """The hook after a call; `output` is None where it raised."""
        cache = self._cache
        self._restore()
        if cache is not None and output is not None:
            cache.end_call()

    def _restore(self) -> None:
        self._cache = self._called = None
        if self._replaced is not None:
            config, implementation = self._replaced
            config._attn_implementation = implementation
            self._replaced = None
