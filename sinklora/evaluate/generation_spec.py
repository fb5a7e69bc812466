"""What generation with a real model costs under a cache: time and peak memory, in processes of their own."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import POLICIES, CachePolicy, make_policy
from sinklora.evaluate.generation_cost import OWN, generate, generation_rounds
from sinklora.evaluate.memory import (
    KEEP_MEMORY,
    RETURN_MEMORY,
    reset_resident_peak,
    resident_bytes,
    resident_peak_bytes,
)
from sinklora.evaluate.own_process import in_own_process
from sinklora.hf.budget_cache import BudgetCache
from sinklora.pretrained.loading import load
from sinklora.records.checks import Count, Distinct, check_fields, one_of

WARM_TOKENS = 64  # of a first, short prompt: libraries come up and kernels are chosen before anything counts


@dataclass(frozen=True)
class GenerationSpec:
    """A prompt of `prompt_tokens` for each of `batch` rows, then `new_tokens` a row, by a model in a dtype.

    `policies` have names of `POLICIES`; `budget`, of those that are bounded, is a fraction of the prompt.
    """

    base: str
    dtype: Annotated[str, one_of(("float32", "bfloat16", "float16"))]
    device: str
    batch: Count
    prompt_tokens: Count
    new_tokens: Count
    budget: float
    policies: Distinct[Annotated[str, one_of(POLICIES)]]

    def __post_init__(self) -> None:
        check_fields(self)
        self.made_policies()

    def made_policies(self) -> dict[str, CachePolicy]:
        """The policies by name. ValueError for a wrong budget."""
        return {n: make_policy(n, self.budget if POLICIES[n].bounded else None) for n in self.policies}

    def makers(self, model: PreTrainedModel) -> dict[str, Callable[[], Cache]]:
        """How an empty cache is made, by policy, transformers' own first."""
        ours = {name: partial(BudgetCache, model, policy) for name, policy in self.made_policies().items()}
        return {OWN: DynamicCache, **ours}

    def loaded(self) -> PreTrainedModel:
        """The model, with a short prompt behind it."""
        model = load(self.base, dtype=getattr(torch, self.dtype), device=self.device).model
        for make in self.makers(model).values():
            generate(model, make, self.prompt(model, 1, WARM_TOKENS), 2)
        return model

    def prompt(self, model: PreTrainedModel, batch: int, tokens: int) -> torch.Tensor:
        """Token ids [batch, tokens] from a seed of their own; the values do not change what it costs."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(3, model.config.vocab_size, (batch, tokens), generator=generator).to(self.device)


def time_generation(spec: GenerationSpec, rounds: int) -> list[dict[str, Any]]:
    """The rows of `generation_rounds`, measured in a fresh process."""
    function = "sinklora.evaluate.generation_spec:rounds_as_json"
    what = f"the generation of {spec}"
    rows: list[dict[str, Any]] = in_own_process(
        function, asdict(spec), rounds, what=what, environment=KEEP_MEMORY
    )
    return rows


def peaks_of_generation(spec: GenerationSpec) -> dict[str, int]:
    """By cache: bytes that prompt and decoding add at their peak to what the model takes, in a fresh process.

    Of the device's memory on CUDA, else of resident memory (Linux only), which the C library is told to give
    back between the caches.
    """
    function = "sinklora.evaluate.generation_spec:peaks_as_json"
    what = f"the memory of {spec}"
    peaks: dict[str, int] = in_own_process(function, asdict(spec), what=what, environment=RETURN_MEMORY)
    return peaks


def rounds_as_json(spec: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """What `time_generation` asks of its process."""
    asked = _read(spec)
    model = asked.loaded()
    caches = {name: make for name, make in asked.makers(model).items() if name != OWN}
    frame = generation_rounds(
        model,
        caches,
        prompt_tokens=asked.prompt_tokens,
        new_tokens=asked.new_tokens,
        batch=asked.batch,
        rounds=rounds,
        progress=False,
    )
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def peaks_as_json(spec: dict[str, Any]) -> dict[str, int]:
    """What `peaks_of_generation` asks of its process."""
    asked = _read(spec)
    model = asked.loaded()
    ids = asked.prompt(model, asked.batch, asked.prompt_tokens)
    return {
        name: _added_bytes(partial(generate, model, make, ids, asked.new_tokens), asked.device)
        for name, make in asked.makers(model).items()
    }


def _added_bytes(run: Callable[[], object], device: str) -> int:
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    before = resident_bytes()
    reset_resident_peak()
    run()
    return resident_peak_bytes() - before


def _read(spec: dict[str, Any]) -> GenerationSpec:
    return GenerationSpec(**{**spec, "policies": tuple(spec["policies"])})
