"""What of sinklora works on each causal architecture of the installed transformers, on tiny random models.

    python benchmarks/architectures.py --out docs/architectures.md

Each architecture has a process and a time limit of its own; see architecture_checks.py for what is tested.
"""

from __future__ import annotations

import multiprocessing
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from architecture_checks import CHECKS, WORKS, attempt, describe
from script_options import script
from tiny_architectures import (
    architectures,
    build,
    class_name,
    tiny_config,
    with_wide_window,
    without_window,
)
from tqdm import tqdm
from transformers import PreTrainedModel

from sinklora.records.checks import Positive, check_fields, one_of
from sinklora.records.files import atomic_write

UNTESTED = "not tested"

# What differs from one architecture to the next in the same sentence.
SHORTER = {
    r"\b[A-Z]\w*Attention\b": "(class)",
    r"model_type='[\w-]+'": "model_type=...",
    r"^[\w-]+ stores more": "(type) stores more",
    r"(kv_lora_rank=\d+): [\w-]+ has": r"\1: (type) has",
    r"(embed_tokens or lm_head, not) \w+\)": r"\1 the name here)",
    r"\d+ of \d+ (trainable tensors received no gradient): .*?(\w+\.\w+)\.(?:lora|modules).*": r"\1: \2, ...",
}

PAGE = """# Architectures

What works on each of the {count} causal architectures of transformers {version}, tested on tiny models with
random weights; this page is made by `python benchmarks/architectures.py --out docs/architectures.md`.

- cache: `generate` with a `BudgetCache` that evicts nothing gives the logits and tokens of transformers' own.
- pattern: training with SF-Attn gives the logits and the gradients of all parameters of a dense mask.
- LoRA+: every trainable tensor receives a gradient; a step changes the embeddings and every norm.

Of {built} models: {works}. Refused as the architecture comes, with local attention, but working
without it: "window off" with `sliding_window=None` and full attention in every layer, "wide window" with a
`sliding_window` of `max_position_embeddings`. "–": multimodal, of which no weights are made here.

{table}

## Why not

Sentences that name no exception are what sinklora says when it refuses.

{reasons}

## Not built

Architectures of which there is no tiny model here, and why.

{unbuilt}
"""


@dataclass(frozen=True)
class Row:
    """What was found of one architecture by claim, "yes" or why not; `unbuilt`: why there is no model."""

    architecture: str
    found: dict[str, str] = field(default_factory=dict)
    unbuilt: str = ""


def examine(architecture: str) -> Row:
    """Build the architecture's tiny model and test every claim on a copy of it."""
    try:
        model = build(tiny_config(architecture))
    except Exception as error:
        return Row(architecture, unbuilt=describe(error))
    outcomes = {}
    for claim, check in CHECKS.items():
        torch.manual_seed(0)
        if model.device.type == "meta" and claim == "LoRA+":
            outcomes[claim] = UNTESTED
            continue
        outcomes[claim] = attempt(check, model)
        if "is shorter than max_position_embeddings" in outcomes[claim]:
            outcomes[claim] = window_off(architecture, check) or outcomes[claim]
    return Row(architecture, outcomes)


def window_off(architecture: str, check: Callable[[PreTrainedModel], None]) -> str:
    """What is found after doing what the refusal says, full attention in every layer."""
    outcome = ""
    for how, config in (("window off", without_window), ("wide window", with_wide_window)):
        try:
            model = build(config(architecture))
        except Exception:
            continue
        outcome = attempt(check, model)
        if outcome == WORKS:
            return f"{WORKS} ({how})"
    return f"without local attention: {outcome}" if outcome else ""


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
    lines = [f"| architecture | class | {' | '.join(CHECKS)} |", "|" + "---|" * (2 + len(CHECKS))]
    for row in rows:
        if row.unbuilt:
            continue
        cells = [_cell(row, claim, reasons) for claim in CHECKS]
        lines.append(f"| {row.architecture} | {class_name(row.architecture)} | {' | '.join(cells)} |")
    notes = [
        f"{number}. {reason} ({', '.join(names)})"
        for number, (reason, names) in enumerate(reasons.items(), 1)
    ]
    built = [row for row in rows if not row.unbuilt]
    works = ", ".join(
        f"{claim} {sum(row.found[claim].startswith(WORKS) for row in built)}" for claim in CHECKS
    )
    return PAGE.format(
        count=len(rows),
        version=transformers.__version__,
        built=len(built),
        works=works,
        table="\n".join(lines),
        reasons="\n".join(notes),
        unbuilt="\n".join(f"- {row.architecture}: {row.unbuilt}" for row in rows if row.unbuilt),
    )


def _cell(row: Row, claim: str, reasons: dict[str, list[str]]) -> str:
    outcome = row.found[claim]
    if outcome.startswith(WORKS):
        return outcome
    if outcome == UNTESTED:
        return "–"
    # One reason for all classes, types and names of parameters.
    reason = outcome.replace(class_name(row.architecture), "(class)")
    for text, short in SHORTER.items():
        reason = re.sub(text, short, reason)
    names = reasons.setdefault(reason, [])
    if row.architecture not in names:
        names.append(row.architecture)
    return f"no [{list(reasons).index(reason) + 1}]"


@dataclass(frozen=True)
class ArchitectureOptions:
    """Which architectures are examined, and where the page goes."""

    out: Annotated[Path | None, typer.Option(help="Markdown file; none: printed")] = None
    only: Annotated[
        tuple[Annotated[str, one_of(architectures())], ...],
        typer.Option(help="model types such as llama, separated by commas; default: all"),
    ] = ()
    seconds: Annotated[Positive, typer.Option(help="time limit of each architecture")] = 120.0

    def __post_init__(self) -> None:
        check_fields(self)


def main(options: ArchitectureOptions) -> None:
    """Examine all, or those named, and write the table."""
    names = options.only or architectures()
    text = as_markdown([in_own_process(name, options.seconds) for name in tqdm(names, disable=None)])
    if options.out is None:
        print(text)
    else:
        atomic_write(options.out, text)


application = script(main, ArchitectureOptions)

if __name__ == "__main__":
    application()
