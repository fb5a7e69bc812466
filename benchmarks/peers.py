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

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peer_cases import CASES, Case
from peer_environments import ENVIRONMENTS, NotInstalledError, interpreter
from peer_sides.subject import Setting
from peer_table import agreement, cost, shown
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.evaluate.memory import KEEP_MEMORY, RETURN_MEMORY
from sinklora.pretrained.fetch import model_path, models_folder
from sinklora.records.files import atomic_write, file_hash, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.tables import latex, markdown

HERE = Path(__file__).resolve().parents[1]
TEXT = HERE / "sinklora" / "reproduction" / "demo" / "alice.txt"
KINDS = ("caches", "operators", "steps")
RELEASED = "llama_attn_replace.py"
FETCHED = "smollm2-135m"  # asked too where it has been fetched

Answers = dict[str, dict[str, Any]]  # by case


def write_inputs(model: str, folder: Path, prompt: int, steps: int) -> Path:
    """The text's tokens and, where the model's folder holds other than float32, its weights as such.

    Returns the folder of the model. Raises ValueError where the text is too short.
    """
    source = model_path(model)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokens = tokenizer(TEXT.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"]
    if tokens.shape[1] < prompt + steps:
        raise ValueError(
            f"prompt={prompt}, steps={steps}: the text has {tokens.shape[1]} tokens of {model}; take fewer"
        )
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
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


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
    model: str, cases: Sequence[Case], options: argparse.Namespace
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The tables of one model, by name."""
    with tempfile.TemporaryDirectory(prefix="peers-") as place:
        folder = Path(place)
        weights = write_inputs(model, folder, options.prompt, options.steps)
        longlora = str(options.longlora) if options.longlora else None
        sizes = {"prompt": options.prompt, "steps": options.steps, "budget": options.budget}
        setting = Setting(str(weights), place, threads=options.threads, longlora=longlora, **sizes)
        rounds: list[Answers] = []
        versions: dict[str, dict[str, str]] = {}
        for count in tqdm(range(options.repeats), desc=model, disable=None):
            rounds.append({})
            for process in dict.fromkeys(case.process for case in cases):
                asked = [c for c in cases if c.process == process and not failed(c, rounds[0])]
                if asked:
                    answer = ask(asked, setting, ["seconds"] if count else ["answers", "seconds"])
                    peaks = {} if count else ask(asked, setting, ["memory"])["cases"]
                    for name, found in answer["cases"].items():
                        rounds[-1][name] = peaks.get(name, {}) | found
                    versions.setdefault(asked[0].environment, answer["versions"])
        torch.set_num_threads(options.threads)
        yield "agreement", agreement(model, cases, rounds[0], versions, setting)
        yield "cost", cost(model, cases, rounds)


def failed(case: Case, answers: Answers) -> bool:
    """Whether a case could not be run in an earlier round."""
    return "failed" in answers.get(case.name, {})


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    fetched = [FETCHED] if (models_folder() / FETCHED / "config.json").is_file() else []
    parser.add_argument("--models", nargs="+", default=["data/base", *fetched], help="names, or folders")
    parser.add_argument("--longlora", type=Path, help="folder of a clone of dvlab-research/LongLoRA")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--steps", type=int, default=32, help="tokens decoded")
    parser.add_argument("--budget", type=float, default=0.2, help="of bounded caches, a share of the prompt")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    names = list(ENVIRONMENTS)
    parser.add_argument(
        "--environments", choices=names, nargs="+", default=names, metavar="NAME", help=f"{names}"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder of the results")
    options = parser.parse_args(arguments)
    if options.prompt < 64 or options.prompt % 8 or min(options.steps, options.repeats, options.threads) < 1:
        parser.error(
            f"--prompt {options.prompt} --steps {options.steps} --repeats {options.repeats} --threads "
            f"{options.threads}: expected a prompt of at least 64 tokens, a multiple of 8, and counts of at "
            "least 1"
        )
    if not 0 < options.budget < 1 or int(options.budget * options.prompt) < 8:
        parser.error(f"--budget {options.budget}: expected a share below 1 that keeps 8 tokens or more")
    options.environments = list(dict.fromkeys(["today", *options.environments]))  # ours: compared with
    if options.longlora is not None:
        options.longlora = options.longlora.resolve()
        if not (options.longlora / RELEASED).is_file():
            parser.error(f"--longlora {options.longlora}: has no {RELEASED}; name a clone's folder")
    return options


def chosen(options: argparse.Namespace, first: bool) -> list[Case]:
    """The cases that are asked on a model, ours first: without them there is nothing to compare with."""
    kinds = set(options.only) if first else {"caches"} & set(options.only)
    return [case for case in CASES if case.kind in kinds and case.environment in options.environments]


def main(arguments: list[str]) -> None:
    """Measure, print and write the tables."""
    options = parse(arguments)
    tables: dict[str, list[pd.DataFrame]] = {"agreement": [], "cost": []}
    for model in options.models:
        cases = chosen(options, first=model == options.models[0])
        if cases:
            for name, table in measure_model(model, cases, options):
                tables[name].append(table)
    options.out.mkdir(parents=True, exist_ok=True)
    what = (
        f"Float32 on the CPU, {options.threads} threads; a prompt of {options.prompt} tokens and "
        f"{options.steps} more; bounded caches keep {options.budget:.0%} of the prompt"
    )
    rounds = {"agreement": "", "cost": f"; ratios are medians of {options.repeats} rounds"}
    settings = {key: str(value) for key, value in vars(options).items() if not isinstance(value, Path)}
    pins = {name: list(ENVIRONMENTS[name].pins) for name in options.environments}
    for name, parts in tables.items():
        table = pd.concat(parts, ignore_index=True)
        shown_table = shown(name, table)
        caption = f"{what}{rounds[name]}."
        text = f"{markdown(shown_table)}\n\n{caption}\n"
        atomic_write(options.out / f"peers_{name}.csv", table.to_csv(index=False))
        atomic_write(options.out / f"peers_{name}.md", text)
        atomic_write(options.out / f"peers_{name}.tex", latex(shown_table, caption))
        record = {"parameters": settings, "environments": pins, **current_provenance()}
        if options.longlora is not None:
            record["longlora_sha256"] = file_hash(options.longlora / RELEASED)
        write_json(options.out / f"peers_{name}.json", record)
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
