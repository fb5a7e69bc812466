"""lm-evaluation-harness under a cache budget: all its tasks, scoring and generating through the cache.

From the command line: `sinklora eval`; for `lm_eval.simple_evaluate`: `model=LMEvalModel(...)`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm

from sinklora.cache.policies import CachePolicy
from sinklora.evaluate.lm_eval_arguments import chunk_of, policy_of, positions_of, tokens_of
from sinklora.evaluate.lm_eval_requests import (
    Request,
    check_prompt,
    check_texts,
    check_tokens,
    divided_differently,
)
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.cache_positions import trained_length
from sinklora.hf.device import default_device, input_device
from sinklora.hf.model_names import adapter_folder, check_model_name
from sinklora.hf.rope import forget_longest_input
from sinklora.lora.adapter_files import STATE_FILE
from sinklora.lora.checkpoint import load_adapter
from sinklora.pretrained.catalogue import packaged_record
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import dtype_of

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise ImportError("lm-evaluation-harness is not installed: pip install 'sinklora[eval]'") from error

WHERE = ("revision", "subfolder", "gguf_file")  # arguments of the harness that say where a model lies


class _NotTied:
    """Stands for a model with an adapter while the harness sets itself up.

    The harness ties the weights of every torch module that it is given. Embeddings that are trained beside an
    adapter are tied already, and peft's wrappers around them cannot be tied again.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model, self.config, self.device = model, model.config, input_device(model)
        self.name_or_path = model.get_base_model().name_or_path

    def to(self, device: Any) -> _NotTied:
        self.model.to(device)
        return self


@register_model("sinklora")
class LMEvalModel(HFLM):
    """A causal language model that answers through a BudgetCache.

    `pretrained`: a folder or name (of a packaged model or on the hub), or a model, also a PeftModel; `peft`:
    the folder or hub name of an adapter, of sinklora (then with its positions and pattern) or of peft alone.
    `kv`: "full", which is the harness's own `hf` model with the model's own cache, or the name of another
    policy, or a CachePolicy.
    `budget`: a fraction of the context ("0.2", "20%") or tokens ("64"); none for full and for a CachePolicy.
    `prefill_chunk` and `positions`: as in BudgetCache. Other arguments are those of the harness's `hf` model;
    `max_length` is what the model with its adapter can address, unless given.

    A context is read and evicted, then the continuation is scored token by token; a context that several
    continuations share is read once, and `batch_size` of them are scored at a time. `dynamic` positions are
    scaled by the longest row of a batch, of contexts that are read together without a cache or to write on
    from: `batch_size=1` scores each as if alone. Raises ValueError before a model is loaded, and for requests
    without a right number, naming the request.
    """

    _model: Any
    logits_cache: bool

    def __init__(
        self,
        pretrained: str | nn.Module,
        kv: str | CachePolicy = "full",
        budget: str | int | float | None = None,
        prefill_chunk: str | int | None = None,
        positions: str = "text",
        peft: str | None = None,
        max_length: str | int | None = None,
        **arguments: Any,
    ) -> None:
        self.policy = policy_of(kv, budget)
        self._packaged: dict[str, Any] = {}
        self.prefill_chunk = chunk_of(prefill_chunk, self.policy)
        self.positions = positions_of(positions, self.policy)
        length = tokens_of("max_length", max_length)
        if isinstance(pretrained, str):
            where = {name: str(arguments[name]) for name in WHERE if arguments.get(name)}
            check_model_name(pretrained, "pretrained", **where)
            revision = where.get("revision", "main")
            arguments["peft"] = peft and str(adapter_folder(peft, "peft", revision=revision))
            device = str(arguments.get("device") or default_device())
            arguments["dtype"] = arguments.get("dtype") or dtype_of(pretrained, device, "auto")
            self._packaged = packaged_record(pretrained)
            pretrained = model_path(pretrained)
        elif peft:
            raise ValueError(f"peft={peft!r}: is for pretrained by name; give a model that has its adapter")
        elif arguments.get("tokenizer") is None and not pretrained.name_or_path:
            raise ValueError("tokenizer: the model has no name to find one by; give tokenizer=")
        model = _NotTied(pretrained) if isinstance(pretrained, PeftModel) else pretrained
        super().__init__(pretrained=model, backend="causal", max_length=length, **arguments)
        if isinstance(self._model, _NotTied):
            self._model = self._model.model.eval()
        if not isinstance(pretrained, str):
            self._device = input_device(self._model)
        if self.prefix_token_id is None:
            raise ValueError(
                "tokenizer: has no first (BOS) or last (EOS) token to stand for an empty context; give "
                "prefix_token_id="
            )
        if self.policy is not None:
            self.new_cache(probe=True)  # refuses, before the first request, what cannot use one

    def _create_model(self, pretrained: str, peft: str | None = None, **arguments: Any) -> None:
        ours = peft is not None and (Path(peft) / STATE_FILE).is_file()
        super()._create_model(pretrained, peft=None if ours else peft, **arguments)
        if ours:
            self._model = load_adapter(self._model, str(peft))
        if peft is not None:
            self._model = _NotTied(self._model)

    @property
    def max_length(self) -> int:
        """Tokens that the model was trained for or extended to; where its config does not say, the harness's
        number; one that was given.
        """
        length: int = super().max_length
        return length if self._max_length else trained_length(self.model.config) or length

    def get_model_info(self) -> dict[str, Any]:
        """What the harness records of the model beside results; of a packaged one also where it is from."""
        info: dict[str, Any] = super().get_model_info()
        return {**info, **self._packaged}

    def new_cache(self, probe: bool = False) -> BudgetCache:
        """An empty cache of the policy for one request or batch; `probe` as in BudgetCache."""
        assert self.policy is not None
        return BudgetCache(
            self.model, self.policy, prefill_chunk=self.prefill_chunk, positions=self.positions, probe=probe
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding writes it) of each request's continuation, in order."""
        texts = [request.args for request in requests]
        check_texts(texts, lambda text: self.tok_encode(text, add_special_tokens=False))
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        check_tokens(requests, self.max_length)
        if self.policy is None:
            return self._by_the_harness(requests, disable_tqdm, override_bs)
        by_context: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            # The last token of a continuation is scored and not read.
            fitting = context[-(self.max_length + 1 - len(continuation)) :]
            by_context.setdefault(tuple(fitting), []).append(index)
        scores: dict[int, tuple[float, bool]] = {}
        for ids, indices in tqdm(by_context.items(), disable=disable_tqdm, desc="contexts"):
            cache, logits = self._read(list(ids))
            for part in self._batches(indices):
                used = cache if part[-1] == indices[-1] else copy.deepcopy(cache)
                several = self._score(used, logits, [requests[index][2] for index in part])
                scores |= dict(zip(part, several, strict=True))
            for index in indices:
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], scores[index])
        return [scores[index] for index in range(len(requests))]

    def _by_the_harness(
        self, requests: Sequence[Request], disable_tqdm: bool, override_bs: int | None
    ) -> list[tuple[float, bool]]:
        shares = self.logits_cache
        # Of these the harness (0.4.13) scores the shorter continuation at the longer one's first tokens.
        self.logits_cache = shares and not divided_differently(requests)
        try:
            scores: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
        finally:
            self.logits_cache = shares
        return scores

    def _model_call(self, *inputs: Any, **options: Any) -> torch.Tensor:
        forget_longest_input(self.model)
        logits: torch.Tensor = super()._model_call(*inputs, **options)
        return logits

    def _batches(self, indices: list[int]) -> list[list[int]]:
        rows = self.batch_size if isinstance(self.batch_size, int) else 1  # "auto" says nothing of a cache
        return [indices[begin : begin + rows] for begin in range(0, len(indices), rows)]

    def _forward(self, tokens: torch.Tensor, cache: BudgetCache) -> torch.Tensor:
        """Log-probabilities of what follows the last of `tokens` [B, N], float32 [B, vocabulary]."""
        precision = self.mixed_precision_dtype
        with torch.autocast(self.device.type, dtype=precision, enabled=precision is not None):
            output = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return torch.log_softmax(output.logits[:, -1].float(), -1)

    @torch.inference_mode()
    def _read(self, ids: list[int]) -> tuple[BudgetCache, torch.Tensor]:
        cache = self.new_cache()
        forget_longest_input(self.model)
        return cache, self._forward(torch.tensor([ids], device=self.device), cache)

    @torch.inference_mode()
    def _score(
        self, cache: BudgetCache, likely: torch.Tensor, continuations: list[list[int]]
    ) -> list[tuple[float, bool]]:
        """Continuations of what the cache has read, a row each; one that has ended repeats its last token."""
        longest = max(map(len, continuations))
        rows = [c + c[-1:] * (longest - len(c)) for c in continuations]
        tokens = torch.tensor(rows, device=self.device)
        cache.batch_repeat_interleave(len(rows))
        forget_longest_input(self.model)
        likely = likely.expand(len(rows), -1)
        chosen, greedy = [], []
        for place in range(longest):
            if place:
                likely = self._forward(tokens[:, place - 1, None], cache)
            chosen.append(likely.gather(-1, tokens[:, place, None])[:, 0].double())
            greedy.append(likely.argmax(-1) == tokens[:, place])
        scores, right = torch.stack(chosen, 1).cpu(), torch.stack(greedy, 1).cpu()
        return [
            (float(scores[row, : len(c)].sum()), bool(right[row, : len(c)].all()))
            for row, c in enumerate(continuations)
        ]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, token by token. A fraction has no prompt here: raises ValueError."""
        if self.policy is not None and self.policy.is_fraction:
            raise ValueError(
                f"budget={self.policy.whole_budget}: rolling log-likelihoods have no prompt to take a "
                "fraction of; give the budget in tokens"
            )
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return scores

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, greedily or as the request says, in order."""
        for index, (prompt, generation) in enumerate(request.args for request in requests):
            new_tokens = normalize_gen_kwargs(generation, self.max_gen_toks)["max_gen_toks"]
            check_prompt(index, prompt, new_tokens, self.max_length, self.tok_encode(prompt))
        written: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return written

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any
    ) -> torch.Tensor:
        if self.policy is not None:
            generation["past_key_values"] = self.new_cache()
        forget_longest_input(self.model)
        tokens: torch.Tensor = super()._model_generate(context, max_length, stop, **generation)
        return tokens
