"""A plan in words: how many jobs of each kind, the GPU memory that one needs, and the hours."""

from collections.abc import Iterator

import pandas as pd

from sinklora.records.tables import DASH, markdown
from sinklora.reproduction.workflow.plan import WorkflowPlan
from sinklora.reproduction.workflow.resources import MARGIN, STARTING, Machine


def listed(plan: WorkflowPlan, machine: Machine) -> str:
    """A table of the jobs, a line for fine-tunes of the same base, context and steps, a line a notebook."""
    lines = pd.DataFrame([*_fine_tunes(plan), *_notebooks(plan)])
    hours = sum(asked.hours for asked in plan.resources.values())
    bases = ", ".join(dict.fromkeys(spec.base for spec in plan.fine_tunes.values())) or "no fine-tunes"
    return (
        f"Profile {plan.profile}, {bases}: {len(plan.fine_tunes)} fine-tunes, {len(plan.notebooks)} notebooks"
        f"\n\n{markdown(lines)}\n\n"
        f"Fine-tunes: {hours:.1f} hours of one device in all, at {machine.tflops:g} TFLOP/s (--tflops: "
        "another). Memory and hours by `sinklora estimate`: an upper bound over patterns. The limit is "
        f"{MARGIN:g} times the hours and {STARTING} minutes; a notebook's is no estimate. What a notebook "
        "decides while it runs (rates beyond the grid, equal time, the longest context) it trains itself.\n"
    )


def _fine_tunes(plan: WorkflowPlan) -> Iterator[dict[str, str]]:
    kinds: dict[tuple[str, int, int], list[str]] = {}
    for name, spec in plan.fine_tunes.items():
        kinds.setdefault((spec.base, spec.context, spec.steps), []).append(name)
    bases = {base for base, _, _ in kinds}
    for (base, context, steps), names in sorted(kinds.items()):
        asked = [plan.resources[name] for name in names]
        each, most = max(one.hours for one in asked), max(asked, key=lambda one: one.gpu_gib)
        yield {
            "job": f"fine-tune{f' of {base}' if len(bases) > 1 else ''}, {context} tokens, {steps} steps",
            "jobs": str(len(names)),
            "GPU GiB": f"{most.gpu_gib:g}" if most.gpus else DASH,
            "memory GiB": f"{max(one.memory_mb for one in asked) / 1024:.0f}",
            "hours each": f"{each:.2f}",
            "limit, hours": f"{max(one.minutes for one in asked) / 60:.1f}",
        }


def _notebooks(plan: WorkflowPlan) -> Iterator[dict[str, str]]:
    for name, job in plan.notebooks.items():
        asked = job.resources
        yield {
            "job": f"notebook {name}, after {len(job.needs)} fine-tunes",
            "jobs": "1",
            "GPU GiB": f"{asked.gpu_gib:g}" if asked.gpus else DASH,
            "memory GiB": f"{asked.memory_mb / 1024:.0f}",
            "hours each": DASH,
            "limit, hours": f"{asked.minutes / 60:.1f}",
        }
