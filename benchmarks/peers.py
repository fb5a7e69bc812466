"""sinklora beside what a user would pick instead: who agrees with a dense reference, and what does it take?

    python benchmarks/peers.py --longlora FOLDER --out out/benchmarks

Two tables. `agreement`: each cache, operator and training step against dense masks and definitions written
out (peer_references.py), or the reason why a peer cannot be run. `cost`: seconds on the wall, seconds of the
processor and peak memory, as ratios to ours of the same kind. Each peer has an environment of its own
(peer_environments.py), made at the first run, and a process of its own in each round; ratios are of the same
round, medians of all. Weights are float32, on the CPU. Caches are asked on every model given, operators and
training steps on the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from peer_cases import CASES, Case
from peer_environments import ENVIRONMENTS, NotInstalledError, interpreter
from peer_sides.subject import Setting
from peer_table import agreement, cost, shown
from pydantic import AfterValidator, Field
from safetensors.torch import save_file
from script_options import CORES, OUT, OutFolder, Repeats, Threads, script, settings_of
from table_files import write_table
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.evaluate.memory import KEEP_MEMORY, RETURN_MEMORY
from sinklora.pretrained.fetch import model_path, models_folder
from sinklora.records.checks import Count, Distinct, check_fields, check_value, one_of
from sinklora.records.files import atomic_write, file_hash
from sinklora.records.tables import latex, markdown

HERE = Path(__file__).resolve().parents[1]
TEXT = HERE / "sinklora" / "reproduction" / "demo" / "alice.txt"
KINDS = ("caches", "operators", "steps")
RELEASED = "llama_attn_replace.py"
FETCHED = "smollm2-135m"  # asked too where it has been fetched
LEAST_KEPT = 8  # tokens that a bounded cache keeps of the prompt

Answers = dict[str, dict[str, Any]]  # by case
Prompt = Annotated[int, Field(ge=64, multiple_of=8)]


def _is_release(folder: Path | None) -> Path | None:
    if folder is not None and not (folder / RELEASED).is_file():
        raise ValueError(f"the folder of a clone, with {RELEASED} in it")
    return folder


@dataclass(frozen=True)
class PeerOptions:
    """Who is asked, for what, and where the tables go."""

    models: Annotated[Distinct[str], typer.Option(help="names, or folders, separated by commas")] = (
        "data/base",
        *([FETCHED] if (models_folder() / FETCHED / "config.json").is_file() else []),
    )
    longlora: Annotated[
        Path | None,
        AfterValidator(_is_release),
        typer.Option(help="folder of a clone of dvlab-research/LongLoRA"),
    ] = None
    prompt: Annotated[Prompt, typer.Option(help="tokens: a multiple of 8, 64 or more")] = 1024
    steps: Annotated[Count, typer.Option(help="tokens decoded")] = 32
    budget: Annotated[float, typer.Option(help="share of the prompt that bounded caches keep")] = 0.2
    repeats: Repeats = 3
    threads: Threads = CORES
    only: Annotated[
        Distinct[Annotated[str, one_of(KINDS)]],
        typer.Option(help=f"separated by commas: {', '.join(KINDS)}"),
    ] = KINDS
    environments: Annotated[
        Distinct[Annotated[str, one_of(ENVIRONMENTS)]],
        typer.Option(help=f"beside today, separated by commas: {', '.join(ENVIRONMENTS)}"),
    ] = tuple(ENVIRONMENTS)
    out: OutFolder = OUT

    def __post_init__(self) -> None:
        check_fields(self)
        check_value("budget", self.budget, Annotated[float, Field(ge=LEAST_KEPT / self.prompt, lt=1)])

    @property
    def compared_environments(self) -> list[str]:
        """The environments, ours among them, that all are compared with."""
        return list(dict.fromkeys(["today", *self.environments]))


def write_inputs(model: str, folder: Path, prompt: int, steps: int) -> Path:
    """The text's tokens and, where the model's folder holds other than float32, its weights as such.

    Returns the folder of the model. Raises ValueError where the text is too short.
    """
    source = model_path(model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokens = tokenizer(TEXT.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"]
    check_value("prompt + steps", prompt + steps, Annotated[int, Field(le=tokens.shape[1])])
    save_file({"ids": tokens[:, : prompt + steps].contiguous()}, folder / "ids.safetensors")
    weights = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    weights.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def ask(cases: Sequence[Case], setting: Setting, measures: list[str]) -> dict[str, Any]:
    """What a process answers about cases of one environment; where there is none, all have failed for that
    reason.
    """
    try:
        python = interpreter(ENVIRONMENTS[cases[0].environment], HERE)
    except NotInstalledError as error:
        return {"cases": {case.name: {"failed": str(error)} for case in cases}, "versions": {}}
    request = {
        "setting": asdict(setting),
        "cases": {case.name: case.request() for case in cases},
        "measures": measures,
    }
    memory = RETURN_MEMORY if "memory" in measures else KEEP_MEMORY
    done = subprocess.run(
        [str(python), "-W", "ignore", "-m", "peer_sides.process", json.dumps(request)],
        cwd=setting.folder,
        env={**os.environ, **memory, **surroundings(setting.threads)},
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or f"its process ended with {done.returncode}").splitlines()[-1]
        return {"cases": {case.name: {"failed": last} for case in cases}, "versions": {}}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def surroundings(threads: int) -> dict[str, str]:
    """What a side's process finds: this checkout's modules, no network, no bars."""
    return {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE / "benchmarks")]),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def measure_model(
    model: str, cases: Sequence[Case], options: PeerOptions
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The tables of one model, by name."""
    with tempfile.TemporaryDirectory(prefix="peers-") as place:
        folder = Path(place)
        weights = write_inputs(model, folder, options.prompt, options.steps)
        setting = Setting(
            str(weights),
            place,
            options.prompt,
            options.steps,
            options.budget,
            options.threads,
            longlora=str(options.longlora.resolve()) if options.longlora else None,
        )
        rounds: list[Answers] = []
        versions: dict[str, dict[str, str]] = {}
        for count in tqdm(range(options.repeats), desc=model, disable=None):
            rounds.append({})
            for process in dict.fromkeys(case.process for case in cases):
                asked = [c for c in cases if c.process == process and not failed(c, rounds[0])]
                if asked:
                    answer = ask(asked, setting, ["seconds"] if count else ["answers", "seconds"])
                    peaks = {} if count else ask(asked, setting, ["memory"])["cases"]
                    for name, measured in answer["cases"].items():
                        rounds[-1][name] = peaks.get(name, {}) | measured
                    versions.setdefault(asked[0].environment, answer["versions"])
        torch.set_num_threads(options.threads)
        yield "agreement", agreement(model, cases, rounds[0], versions, setting)
        yield "cost", cost(model, cases, rounds)


def failed(case: Case, answers: Answers) -> bool:
    """Whether a case could not be run in an earlier round."""
    return "failed" in answers.get(case.name, {})


def chosen(options: PeerOptions, first: bool) -> list[Case]:
    """The cases that are asked on a model, ours first: without them there is nothing to compare with."""
    kinds = set(options.only) if first else {"caches"} & set(options.only)
    return [
        case for case in CASES if case.kind in kinds and case.environment in options.compared_environments
    ]


def main(options: PeerOptions) -> None:
    """Measure, print and write the tables."""
    tables: dict[str, list[pd.DataFrame]] = {"agreement": [], "cost": []}
    for model in options.models:
        cases = chosen(options, first=model == options.models[0])
        if cases:
            for name, table in measure_model(model, cases, options):
                tables[name].append(table)
    for name, parts in tables.items():
        write_peers(name, pd.concat(parts, ignore_index=True), options)


def write_peers(name: str, table: pd.DataFrame, options: PeerOptions) -> None:
    """Print a table, and write it with the environments' pins and the hash of LongLoRA's operator."""
    rounds = f"; ratios are medians of {options.repeats} rounds" if name == "cost" else ""
    caption = (
        f"Float32 on the CPU, {options.threads} threads; a prompt of {options.prompt} tokens and "
        f"{options.steps} more; bounded caches keep {options.budget:.0%} of the prompt{rounds}."
    )
    record: dict[str, Any] = {
        "environments": {name: list(ENVIRONMENTS[name].pins) for name in options.compared_environments}
    }
    if options.longlora is not None:
        record["longlora_sha256"] = file_hash(options.longlora / RELEASED)
    shown_table = shown(name, table)
    text = f"{markdown(shown_table)}\n\n{caption}\n"
    write_table(options.out, f"peers_{name}", table, text, settings_of(options), **record)
    atomic_write(options.out / f"peers_{name}.tex", latex(shown_table, caption))


application = script(main, PeerOptions)

if __name__ == "__main__":
    application()
