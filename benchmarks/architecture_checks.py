"""What is claimed of every architecture, each tested against the model as transformers runs it."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_architectures import VOCABULARY
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import sinklora

WORKS = "yes"


class WrongError(Exception):
    """A result that differs from transformers' own."""


def tokens(rows: int, count: int) -> Tensor:
    """Random token ids, none of them special."""
    return torch.randint(3, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(1))


def check_cache(model: PreTrainedModel) -> None:
    """A cache that keeps everything equals transformers' own in `generate`: logits and tokens."""
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "output_logits": True}
    options |= {"return_dict_in_generate": True, "pad_token_id": 0, "use_cache": True}
    ids = tokens(2, 20)
    options["attention_mask"] = torch.ones_like(ids)
    reference = copy.deepcopy(model)
    budget = sinklora.BudgetCache(model, sinklora.Full())  # refuses before anything runs
    actual = model.generate(ids, past_key_values=budget, **options)
    own = DynamicCache(config=reference.config)
    expected = reference.generate(ids, past_key_values=own, **options)
    _check_close("logits", torch.stack(actual.logits), torch.stack(expected.logits))
    if not torch.equal(actual.sequences, expected.sequences):
        raise WrongError("tokens differ")


def check_pattern(model: PreTrainedModel) -> None:
    """Training with SF-Attn equals the model under a dense mask: logits and gradients of all parameters."""
    reference = copy.deepcopy(model).train()
    sinklora.use_pattern(model, sinklora.SF).train()
    ids = tokens(2, 24)
    inputs = {"input_ids": ids, "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:  # some would read them off the mask
        inputs["position_ids"] = torch.arange(24).expand(2, -1)
    seen = sinklora.SF.visible(1, 24)[None]
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min).expand(2, -1, -1, -1)
    actual, full = model(**inputs).logits, reference(**inputs).logits
    if (full - actual).abs().max() < 1e-4 * full.abs().max():
        raise WrongError("the pattern has no effect")
    expected = reference(**inputs, attention_mask=mask).logits
    _check_close("logits", actual, expected)
    for logits in (actual, expected):
        logits.square().mean().backward()
    for (name, parameter), (_, other) in zip(
        model.named_parameters(), reference.named_parameters(), strict=True
    ):
        if (parameter.grad is None) != (other.grad is None):
            raise WrongError(f"only one of the two has a gradient of {name}")
        if parameter.grad is not None:
            _check_close(f"gradients of {name}", parameter.grad, other.grad)


def check_lora_plus(model: PreTrainedModel) -> None:
    """All trainable tensors get a gradient; a step changes the embedding and every norm."""
    wrapped = sinklora.lora_plus(model, rank=2).train()
    ids = tokens(2, 24)
    trainable = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trainable.items() if ".lora_" not in name}
    wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    sinklora.check_gradients(wrapped)
    torch.optim.AdamW(trainable.values(), lr=1e-2).step()
    unchanged = [name for name, value in before.items() if torch.equal(value, trainable[name])]
    if unchanged or not before:
        raise WrongError(f"a step does not change {', '.join(unchanged[:3]) or 'anything but LoRA'}")


CHECKS: dict[str, Callable[[PreTrainedModel], None]] = {
    "cache": check_cache,
    "pattern": check_pattern,
    "LoRA+": check_lora_plus,
}


def _check_close(what: str, actual: Tensor, expected: Tensor) -> None:
    difference = (actual.float() - expected.float()).abs().max().item()
    if not difference <= 1e-4 * max(1.0, expected.abs().max().item()):
        raise WrongError(f"{what} differ by {difference:.2g}")


def attempt(check: Callable[[PreTrainedModel], None], model: PreTrainedModel) -> str:
    """ "yes", or what the check raised."""
    try:
        check(copy.deepcopy(model))
    except Exception as error:
        return describe(error)
    return WORKS


def describe(error: Exception) -> str:
    """Refusals are sinklora's own sentences; everything else is named by its kind and where it was raised."""
    sentence = " ".join(str(error).split())
    if isinstance(error, WrongError):
        return f"WRONG: {sentence}"
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = Path(sinklora.__file__).parent in last.parents
    return sentence if ours else f"{type(error).__name__} in {last.name}: {sentence[:160]}"
