"""Another attention for the length of a call: forward hooks on models that are called with a cache."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn
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


class Call(NamedTuple):
    """A call in progress: the outermost model that was called, and whether with a `CalledCache`."""

    model: PreTrainedModel
    cached: bool


_claiming = threading.Lock()


class AttentionSwitch:
    """Lets a model attend through a `CalledCache` while it is called with one, and by its own attention else.

    The config names `CACHE_NAME` for the length of the call and what it named before afterwards, also where
    the call raises. After an interruption that PyTorch runs no hooks for (Ctrl-C), the next call of the model
    restores it first. Hooks of all transformers models in a model share one switch, because some
    architectures reach their decoder past the model around it; copies and pickles of the model keep theirs.

    The config is the same in all threads: while one calls the model with a cache no other may call it, which
    is a ValueError. Compiled calls are not looked at.
    """

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}  # by thread
        self._replaced: tuple[PreTrainedConfig, str] | None = None
        self._cache: CalledCache | None = None
        self._called: PreTrainedModel | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What copies take along: no thread has called them."""
        return {**vars(self), "_calls": {}}

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
        if not torch.compiler.is_compiling():
            self._claim(module, cache is not None)
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
        if torch.compiler.is_compiling():
            self._end(output)
        elif not self._is_taken():  # else the call was refused, and what is to be restored is another's
            try:
                self._end(output)
            finally:
                self._release(module)

    def _end(self, output: Any) -> None:
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

    def _claim(self, module: PreTrainedModel, cached: bool) -> None:
        """Note that this thread calls; ValueError where another one is calling, one of them with a cache."""
        thread = threading.get_ident()
        with _claiming:
            for other, call in list(self._calls.items()):
                if other != thread and (cached or call.cached):
                    if _is_calling(other):
                        raise ValueError(
                            "another thread is calling this model, one of the two with a BudgetCache, which "
                            "changes the model's attention for the length of a call: take turns, or give "
                            "each thread a copy.deepcopy(model), made before they start"
                        )
                    del self._calls[other]
            around = self._calls.get(thread)
            if around is None or around.model is module:
                self._calls[thread] = Call(module, cached)
            elif cached:
                self._calls[thread] = around._replace(cached=True)

    def _is_taken(self) -> bool:
        """Whether a call with a cache is in progress in another thread."""
        thread = threading.get_ident()
        return any(call.cached for other, call in list(self._calls.items()) if other != thread)

    def _release(self, module: PreTrainedModel) -> None:
        """Note that this thread's call is over, unless it is one within another."""
        call = self._calls.get(threading.get_ident())
        if call is not None and call.model is module:
            del self._calls[threading.get_ident()]


def _is_calling(thread: int) -> bool:
    """Whether a thread is within a call of any module; after an interruption it is not."""
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return frame is not None
