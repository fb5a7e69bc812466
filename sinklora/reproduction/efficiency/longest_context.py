"""The longest context whose training step fits a given memory, by bisection on measured peaks (Table 3)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from sinklora.evaluate.paired_effects import Effect, difference
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.evaluate.training_step import measured
from sinklora.records.checks import Count, Distinct, check_counts, check_holds, check_value
from sinklora.records.runs import run_records
from sinklora.reproduction.efficiency.study import BASELINE, EAGER_STEP, SF, STEPS, check_methods
from sinklora.reproduction.extension.comparison import NATS, NOT_VALID, losses
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.study import ExtensionStudy
from sinklora.reproduction.extension.tables import untrained_methods
from sinklora.reproduction.names import LABELS
from sinklora.reproduction.report.claims import Claim, Tested, combined, family, with_effect

LADDER = "Table 3"  # of the recipe's texts


def longest(fits: Callable[[int], bool], *, unit: int, most: int, near: int) -> int:
    """The largest multiple of `unit`, at most `most`, for which `fits` holds; 0 if it holds for none.

    `fits` must be true up to some length and false beyond. The search starts at `near`, widens until it
    has one length that fits and one that does not, then halves. Raises ValueError for a unit below 1 or
    `most` below it.
    """
    check_counts(unit=unit)
    check_counts(unit, most=most)
    top = most // unit
    low, high = 0, top + 1  # low fits (0 always does), high does not
    place, stride = min(max(near // unit, 1), top), 1
    while high - low > 1:
        if fits(place * unit):
            low = place
            place = min(low + stride, high - 1)
        else:
            high = place
            place = max(high - stride, low + 1)
        stride *= 2
        if high <= top and low > 0:  # both ends were tried: halve
            place = (low + high) // 2
    return low * unit


def longest_contexts(
    step: StepSpec,
    *,
    memory_gib: float,
    unit: int,
    most: int,
    runs: Path,
    methods: Sequence[str] = tuple(STEPS),
    progress: bool = True,
) -> pd.DataFrame:
    """For each method of Fig. 1 the longest row of tokens whose whole step stays within the memory.

    Columns: method, longest context (tokens), peak there (GiB), ratio to LoRA+ with full attention, and the
    context that the prediction without a device gives. Resident memory on the CPU, device memory on CUDA.
    `attrs["runs"]` records the runs.
    """
    check_methods(methods)
    limit = memory_gib * 2**30
    used: list[Path] = []
    rows = []
    for name in tqdm(methods, desc="longest context", disable=not progress):
        peak_at = partial(_measured_peak, step, STEPS[name], runs, used)
        predicted = longest(
            partial(_predicted_fits, step, STEPS[name], limit), unit=unit, most=most, near=step.context
        )
        tokens = longest(
            lambda context, peak_at=peak_at: (peak := peak_at(context)) is not None and peak <= limit,  # type: ignore[misc]
            unit=unit,
            most=most,
            near=predicted,
        )
        peak = peak_at(tokens) if tokens else None
        rows.append(
            {
                "method": name,
                "longest context (tokens)": tokens,
                "peak (GiB)": float("nan") if peak is None else peak / 2**30,
                "predicted (tokens)": predicted,
            }
        )
    frame = pd.DataFrame(rows)
    base = frame.loc[frame.method == BASELINE, "longest context (tokens)"].iloc[0]
    frame = frame.assign(**{"ratio to LoRA+": frame["longest context (tokens)"] / base})
    frame.attrs["runs"] = run_records(used)
    return frame


def _spec(step: StepSpec, method: Mapping[str, str], context: int) -> StepSpec:
    changes: dict[str, Any] = {**method, "context": context}
    return dataclasses.replace(step, **changes)


def _measured_peak(
    step: StepSpec, method: Mapping[str, str], runs: Path, used: list[Path], context: int
) -> int | None:
    spec = _spec(step, method, context)
    return measured(spec, runs=runs, repeats=1, time_it=False, used=used).peak_bytes


def _predicted_fits(step: StepSpec, method: Mapping[str, str], limit: float, context: int) -> bool:
    return estimate(_spec(step, method, context)).peak_bytes <= limit


def training_context(frame: pd.DataFrame, method: str, choices: Sequence[int]) -> int:
    """The longest of some contexts that fits for a method of `longest_contexts`.

    Raises ValueError where none does.
    """
    fits = int(frame.loc[frame.method == method, "longest context (tokens)"].iloc[0])
    short_enough = [context for context in choices if context <= fits]
    if not short_enough:
        raise ValueError(f"choices={list(choices)}: {method} fits {fits} tokens only; allow more memory")
    return max(short_enough)


def ladder_of(recipe: Recipe, parameters: Mapping[str, Any], context: int) -> ExtensionStudy:
    """The study of Table 3 of a notebook's parameters: trained at `context`, read at the test contexts below
    it and at it.
    """
    rows = parameters["micro_batch_size"]
    changes = {
        "context": context,
        "steps": parameters["steps"],
        "batch_size": max(parameters["batch_tokens"] // context, rows),
        "micro_batch_size": rows,
        "gradient_checkpointing": parameters["gradient_checkpointing"],
    }
    patterns, seeds = tuple(parameters["patterns"]), tuple(parameters["seeds"])
    contexts = (*(tokens for tokens in parameters["test_contexts"] if tokens < context), context)
    return ExtensionStudy(recipe, patterns, seeds, (LADDER,), contexts, changes=tuple(changes.items()))


def check_ladder(recipe: Recipe, parameters: Mapping[str, Any]) -> None:
    """Raise ValueError for parameters of which no table could be made once contexts are measured and all is
    trained, whichever of the contexts fits.
    """
    check_holds("patterns", parameters["patterns"], ["full", "sf"], "Table 3 is about these two")
    check_value("train_contexts", tuple(parameters["train_contexts"]), Distinct[Count])
    for context in parameters["train_contexts"]:
        ladder_of(recipe, parameters, context)


def context_verdict(frame: pd.DataFrame) -> str:
    """What windows and what flash attention gain in context, from `longest_contexts`."""
    longest_of = frame.set_index("method")["longest context (tokens)"]
    full, sf = int(longest_of[BASELINE]), int(longest_of[SF])
    fits = f"SF-Attn fits {sf} tokens, full attention {full}"
    if EAGER_STEP in longest_of:
        fits += f", full attention that holds its scores {int(longest_of[EAGER_STEP])}"
    if sf <= 1.1 * full:
        return f"What lengthens the context is to hold no scores, not the pattern: {fits}."
    return f"{fits}."


def ladder_claims(rows: pd.DataFrame, test_set: str, *, valid: bool, model: str) -> list[Claim]:
    """Claims that with SF-Attn perplexity falls with every longer test context, as in the paper's Table 3,
    and of all; and that at the longest one training is better than each kind of none, where it may fall as
    well.
    """
    method = "sf"
    contexts = sorted(map(int, rows[rows.method == method].context.unique()))
    blank = Claim(test_set, "", "not decided", unit=NATS, table="table3", model=model)
    blank = blank if valid else dataclasses.replace(blank, reason=NOT_VALID)
    effects: dict[Claim, Tested] = {}
    falls: list[Effect] = []
    for short, long in pairwise(contexts):
        before, after = (losses(rows, test_set, context).by_method[method] for context in (short, long))
        sentence = f"with {LABELS[method]} {long} tokens of context are better than {short}"
        falls.append(difference(before, after))
        effects[dataclasses.replace(blank, sentence=sentence, restated=True)] = falls[-1]
    at_longest = losses(rows, test_set, contexts[-1]).by_method
    for name in untrained_methods(rows):
        sentence = f"with {LABELS[method]} {contexts[-1]} tokens are better than no training ({name})"
        none = dataclasses.replace(blank, sentence=sentence, restated=True)
        effects[none] = difference(at_longest[name], at_longest[method])
    decided = family(effects)
    steps, over_none = decided[: len(contexts) - 1], decided[len(contexts) - 1 :]
    whole = dataclasses.replace(
        blank,
        sentence=f"with {LABELS[method]} perplexity falls with every longer context",
        outcome=combined(claim.outcome for claim in steps),
        unit=f"{NATS} at the least step",
    )
    if falls:
        whole = with_effect(whole, min(falls, key=lambda fall: fall.low))
    return [whole, *steps, *over_none]
