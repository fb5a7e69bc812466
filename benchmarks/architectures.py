"""What of sinklora works on which architecture: every causal one of the installed transformers, tiny and random.

    python benchmarks/architectures.py --out docs/architectures.md

Three claims are tested, each against the model as transformers runs it. Cache: `generate` with a BudgetCache that
evicts nothing gives the logits and tokens of transformers' own cache. Pattern: training with SF-Attn gives the
logits and all gradients of the same model under a dense mask. LoRA+: every trainable tensor receives a gradient,
and a step changes embeddings and norms. Each architecture has a process and a time limit of its own.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import multiprocessing
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from tiny_architectures import VOCABULARY, architectures, class_name, tiny_config, tiny_model
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

import sinklora
from sinklora.records.files import atomic_write

PARAMETERS = 20_000_000  # more are not tiny
WORKS = "yes"
CLAIMS = ("cache", "pattern", "LoRA+")


@dataclass(frozen=True)
class Row:
    """What was found of one architecture: "yes", or why not, by claim; `unbuilt` says why there is no model."""

    architecture: str
    found: dict[str, str] = field(default_factory=dict)
    unbuilt: str = ""


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
    mask = torch.ones_like(ids)
    budget = sinklora.BudgetCache(copy.deepcopy(model), sinklora.Full())  # refuses before anything runs
    expected = model.generate(
        ids, attention_mask=mask, past_key_values=DynamicCache(config=model.config), **options
    )
    budget = sinklora.BudgetCache(model, sinklora.Full())
    actual = model.generate(ids, attention_mask=mask, past_key_values=budget, **options)
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
    actual = model(**inputs).logits
    expected = reference(**inputs, attention_mask=mask).logits
    full = reference(**inputs).logits
    _check_close("logits", actual, expected)
    if (full - expected).abs().max() < 1e-4 * expected.abs().max():
        raise WrongError("the pattern has no effect")
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


CHECKS: dict[str, Callable[[PreTrainedModel], None]] = dict(
    zip(CLAIMS, (check_cache, check_pattern, check_lora_plus), strict=True)
)


def _check_close(what: str, actual: Tensor, expected: Tensor) -> None:
    difference = (actual.float() - expected.float()).abs().max().item()
    if not difference <= 1e-4 * max(1.0, expected.abs().max().item()):
        raise WrongError(f"{what} differ by {difference:.2g}")


def examine(architecture: str) -> Row:
    """Build the architecture's tiny model and test every claim on a copy of it."""
    try:
        model = build(tiny_config(architecture))
    except Exception as error:
        return Row(architecture, unbuilt=describe(error))
    found = {}
    for claim, check in CHECKS.items():
        torch.manual_seed(0)
        found[claim] = attempt(check, model)
        if "sliding_window=None" in found[claim]:
            found[claim] = without_window(architecture, check) or found[claim]
    return Row(architecture, found)


def attempt(check: Callable[[PreTrainedModel], None], model: PreTrainedModel) -> str:
    """ "yes", or what the check raised."""
    try:
        check(copy.deepcopy(model))
    except Exception as error:
        return describe(error)
    return WORKS


def without_window(architecture: str, check: Callable[[PreTrainedModel], None]) -> str | None:
    """The same after doing what the refusal says: full attention in every layer."""
    try:
        model = build(tiny_config(architecture, sliding_window=None))
    except Exception:
        return None
    return f"{WORKS}, with sliding_window=None" if attempt(check, model) == WORKS else None


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A tiny model that runs; of a config that cannot be made tiny, a model without weights."""
    with torch.device("meta"):
        shape: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    parameters = sum(parameter.numel() for parameter in shape.parameters())
    if parameters > PARAMETERS:
        if shape.config.get_text_config() is not shape.config:
            return shape  # refused for what it is, before any weight is needed
        raise ValueError(f"{parameters} parameters at the smallest sizes known here")
    model = tiny_model(config)
    with torch.no_grad():
        logits = model(input_ids=tokens(1, 20), use_cache=False).logits
    if not logits.isfinite().all():
        raise ValueError("its logits are not finite")
    return model


def describe(error: Exception) -> str:
    """Refusals are sinklora's own sentences; everything else is named by its kind and where it was raised."""
    sentence = " ".join(str(error).split())
    if isinstance(error, WrongError):
        return f"WRONG: {sentence}"
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = Path(sinklora.__file__).parent in last.parents
    return sentence if ours else f"{type(error).__name__} in {last.name}: {sentence[:160]}"


def in_own_process(architecture: str, seconds: float) -> Row:
    """`examine` in a forked process that is stopped when it takes too long."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send, args=(architecture, sender), daemon=True)
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv() if receiver.poll(seconds) else Row(architecture, unbuilt="took too long")
    except EOFError:
        row = Row(architecture, unbuilt=f"its process ended with code {process.exitcode}")
    process.kill()
    process.join()
    return row


def _send(architecture: str, sender: Connection) -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sender.send(examine(architecture))


def as_markdown(rows: list[Row]) -> str:
    """The table, and below it each reason once."""
    reasons: dict[str, list[str]] = {}
    lines = [f"| architecture | class | {' | '.join(CLAIMS)} |", "|" + "---|" * (2 + len(CLAIMS))]
    for row in rows:
        if row.unbuilt:
            continue
        cells = [_cell(row, claim, reasons) for claim in CLAIMS]
        lines.append(f"| {row.architecture} | {class_name(row.architecture)} | {' | '.join(cells)} |")
    notes = [
        f"{number}. {reason} ({', '.join(names)})"
        for number, (reason, names) in enumerate(reasons.items(), 1)
    ]
    unbuilt = [f"- {row.architecture}: {row.unbuilt}" for row in rows if row.unbuilt]
    built = [row for row in rows if not row.unbuilt]
    counts = ", ".join(
        f"{claim} {sum(row.found[claim].startswith(WORKS) for row in built)}" for claim in CLAIMS
    )
    parts = [
        "# Architectures",
        f"What works on each of the {len(rows)} causal architectures of transformers {transformers.__version__}, tested on "
        "tiny models with random weights and made by `python benchmarks/architectures.py`. Cache: a `BudgetCache` that "
        "evicts nothing gives the logits and tokens of transformers' own cache. Pattern: training with SF-Attn gives the "
        "logits and gradients of a dense mask. LoRA+: embeddings, norms and LoRA receive gradients and a step changes "
        f"them. Of {len(built)} models: {counts}.",
        "\n".join(lines),
        "## Why not",
        "\n".join(notes),
        "## Not built",
        "Architectures of which there is no tiny model here, and why.",
        "\n".join(unbuilt),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(row: Row, claim: str, reasons: dict[str, list[str]]) -> str:
    found = row.found[claim]
    if found == WORKS:
        return WORKS
    if found.startswith(WORKS):
        return f"{WORKS} (window off)"
    # One reason for all classes and types.
    reason = re.sub(
        r"\b(?:[A-Z]\w*(?:Model|ForCausalLM|LMHeadModel|ForConditionalGeneration|Attention))\b",
        "(class)",
        found,
    )
    reason = re.sub(r"model_type='[\w-]+'", "model_type=...", reason)
    names = reasons.setdefault(reason, [])
    if row.architecture not in names:
        names.append(row.architecture)
    return f"no [{list(reasons).index(reason) + 1}]"


def main(arguments: list[str]) -> None:
    """Examine all, or those named, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="Markdown file; none: printed")
    parser.add_argument("--only", nargs="+", default=architectures(), help="architectures (model types)")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of each architecture")
    options = parser.parse_args(arguments)
    rows = [in_own_process(name, options.seconds) for name in tqdm(options.only, disable=None)]
    text = as_markdown(rows)
    if options.out is None:
        print(text)
    else:
        atomic_write(options.out, text)


if __name__ == "__main__":
    main(sys.argv[1:])
