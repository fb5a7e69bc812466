"""Table 5: seconds, tokens a second and peak memory of generation under each cache, on a real model too."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.evaluate.generation_cost import OWN
from sinklora.evaluate.generation_spec import GenerationSpec, peaks_of_generation, time_generation
from sinklora.evaluate.timing import median_ratio
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.records.checks import Count, check_fields
from sinklora.records.files import contents_hash
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import remember, run_records
from sinklora.records.tables import Column, Estimate, Number, Table, part
from sinklora.reproduction.cache.study import base_dtype, base_key

PROMPT, DECODING = "prompt (s)", "decoded tokens/s"

LONGER, FASTER = "prompt, ratio", "decoding, times faster"

WHOLE, WHOLE_RATIO = "prompt and tokens (s)", "whole, ratio"

SETTING = ["batch", "prompt"]


def timed_caches(model: PreTrainedModel) -> dict[str, Callable[[], BudgetCache]]:
    """The caches of Table 5 by the names of its lines; budgets are shares of the prompt."""
    timed: dict[str, CachePolicy] = {
        "full (ours)": Full(),
        **{f"h2o {budget:.0%}": H2O(budget) for budget in (0.05, 0.1, 0.2, 0.5)},
        **{f"{name} 20%": make_policy(name, 0.2) for name in ("local", "streaming", "replay")},
    }
    return {name: partial(BudgetCache, model, policy) for name, policy in timed.items()}


PACKAGE = Path(__file__).parents[2]

# What is timed, and how.
SOURCES = (
    *("attention", "cache", "hf", "operators", "pretrained"),
    *(
        f"evaluate/{name}.py"
        for name in ("generation_cost", "generation_spec", "memory", "own_process", "timing")
    ),
)


@dataclass(frozen=True)
class GenerationStudy:
    """A model, and the settings (rows, prompt tokens) in which policies at one budget are timed."""

    base: str
    settings: tuple[tuple[int, int], ...] = ((1, 2048), (1, 7936), (8, 2048))
    policies: tuple[str, ...] = ("full", "h2o", "streaming", "local", "replay")
    budget: float = 0.2
    new_tokens: Count = 64
    rounds: Count = 3

    def __post_init__(self) -> None:
        check_fields(self)
        for batch, prompt in self.settings:
            self.spec(batch, prompt)

    def spec(self, batch: int, prompt: int) -> GenerationSpec:
        """What is measured in one setting; ValueError for wrong numbers, a wrong policy or budget."""
        return GenerationSpec(
            base=self.base,
            dtype=str(base_dtype(self.base)).removeprefix("torch."),
            device=default_device(),
            batch=batch,
            prompt_tokens=prompt,
            new_tokens=self.new_tokens,
            budget=self.budget,
            policies=self.policies,
        )


def measure_generation(
    study: GenerationStudy, *, runs: Path = Path("runs"), progress: bool = True
) -> pd.DataFrame:
    """One row per setting, cache and round, as `generation_rounds` has them, with `batch`, `prompt` and the
    cache's `peak (bytes)` in that setting.

    Each setting's times and its peaks are run directories of their own, for this machine, these versions and
    these sources: what other code took says nothing of this one. `rows.attrs["runs"]` records them.
    """
    frames, used = [], list[Path]()
    for batch, prompt in tqdm(study.settings, desc="generation", disable=not progress):
        spec = study.spec(batch, prompt)
        key = {"generation": asdict(spec), **base_key(study.base), "machine": machine_and_sources()}
        times = partial(time_generation, spec, study.rounds)
        timed = remember({**key, "rounds": study.rounds}, times, runs=runs, prefix="generation", used=used)
        peaks = remember(
            {**key, "peaks": True},
            partial(peaks_of_generation, spec),
            runs=runs,
            prefix="generation",
            name="peaks",
            used=used,
        )
        frame = pd.DataFrame(timed)
        frame.insert(0, "batch", batch)
        frame.insert(1, "prompt", prompt)
        frames.append(frame.assign(**{"peak (bytes)": frame.cache.map(peaks)}))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs["runs"] = run_records(used)
    return frame


def machine_and_sources(*further: Path) -> dict[str, Any]:
    """What decides what generation takes besides model and setting, in JSON types: what this package's
    sources for it hold, and `further` files.
    """
    known = current_provenance()
    sources = contents_hash(*(PACKAGE / part for part in SOURCES), *further)
    return {name: known[name] for name in ("versions", "hardware", "threads")} | {"sources": sources}


def whole_seconds(rows: pd.DataFrame, new_tokens: int) -> "pd.Series[float]":
    """Seconds of a prompt and of `new_tokens` tokens for each of its rows."""
    return rows[PROMPT] + new_tokens * rows.batch / rows[DECODING]


def generation_table(rows: pd.DataFrame, new_tokens: int) -> Table:
    """One line per setting and cache: medians with the range of the rounds; ratios to transformers' own cache
    in the same round.
    """
    rows = rows.assign(**{WHOLE: whole_seconds(rows, new_tokens)})
    lines = []
    for setting, group in rows.groupby(SETTING, sort=False):
        base = group[group.cache == OWN].sort_values("round")
        for cache, own in group.groupby("cache", sort=False):
            own = own.sort_values("round")
            line = {**dict(zip(SETTING, setting, strict=True)), "cache": cache}
            for heading, values in (
                (PROMPT, list(own[PROMPT])),
                (LONGER, _ratios(own[PROMPT], base[PROMPT])),
                (DECODING, list(own[DECODING])),
                (FASTER, _ratios(own[DECODING], base[DECODING])),
                (WHOLE, list(own[WHOLE])),
                (WHOLE_RATIO, _ratios(own[WHOLE], base[WHOLE])),
            ):
                line |= {heading: median(values), part(heading, "low"): min(values)}
                line[part(heading, "high")] = max(values)
            line["cache (MiB)"] = own["cache (bytes)"].iloc[-1] / 2**20
            lines.append({**line, "peak (MiB)": own["peak (bytes)"].iloc[-1] / 2**20})
    shown = [Estimate(heading) for heading in (PROMPT, LONGER, DECODING, FASTER, WHOLE, WHOLE_RATIO)]
    sizes = [Number("cache (MiB)", ".0f"), Number("peak (MiB)", ".0f")]
    return Table(pd.DataFrame(lines), [*map(Column, (*SETTING, "cache")), *shown, *sizes])


def _ratios(values: Iterable[float], base: Iterable[float]) -> list[float]:
    return [value / own for value, own in zip(values, base, strict=True)]


def generation_verdict(rows: pd.DataFrame) -> str:
    """H2O's prompt and decoding against a full cache of the same code, transformers' and Local's, by setting;
    and how many tokens a row pay for its prompt.
    """
    sentences = []
    for (batch, prompt), group in rows.groupby(SETTING, sort=False):
        of = {cache: own.sort_values("round") for cache, own in group.groupby("cache")}
        longer, faster = (
            [median_ratio(list(of["h2o"][column]), of[name][column]) for name in ("full", OWN, "local")]
            for column in (PROMPT, DECODING)
        )
        sentences.append(
            f"{batch} × {prompt}: H2O's prompt takes {longer[0]:.2f} times as long as with a full cache of "
            f"the same code ({longer[1]:.2f}: {OWN}), it decodes {faster[0]:.2f} times as fast "
            f"({faster[1]:.2f}), and {faster[2]:.2f} times as fast as Local; "
            f"{_paid_after(of['h2o'], of['full'])}"
        )
    return " ".join(sentences)


def _paid_after(cache: pd.DataFrame, other: pd.DataFrame) -> str:
    """From how many decoded tokens a row on a cache has taken less time than another, in the median round."""
    seconds = median(a - b for a, b in zip(cache[PROMPT], other[PROMPT], strict=True))
    rows = cache.batch.iloc[0]
    saved = median(rows / b - rows / a for a, b in zip(cache[DECODING], other[DECODING], strict=True))
    if seconds <= 0 <= saved:
        return "it is ahead from the first token on."
    if saved <= 0:
        return "decoding does not pay for it."
    return f"{seconds / saved:.0f} tokens a row pay for it."
