"""Everything that wants a GPU, step by step (`sinklora gpu`).

`configs/gpu.yaml` says which steps come before the notebooks; the notebooks are those with a profile `gpu` in
`notebooks/experiments.yaml`. A step that succeeded with this commit, and no file changed since, is not run
again; one that was stopped goes on from what its training runs and measurements kept; `minutes` stops before
a time limit.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from sinklora.records.checks import check_among, read_fields
from sinklora.records.runs import RunDirectory
from sinklora.records.yaml_files import read_mapping
from sinklora.reproduction.base_model.study import BaseRecipe, make_base
from sinklora.reproduction.extension.recipe import base_of, check_texts
from sinklora.reproduction.places import INDEX
from sinklora.reproduction.process_family import end_family
from sinklora.reproduction.real_model.study import study_of, tasks
from sinklora.reproduction.report.experiments import (
    Experiment,
    declared_parameters,
    load_experiments,
)
from sinklora.reproduction.side_by_side import run_side_by_side

PROFILE = "gpu"

REAL_MODEL = "09_real_model"  # whose runs share the card

# The run that a base was copied from. No JSON: such files of a base decide the hash of what starts from it.
MADE_FROM = "made_from.txt"

RUNS = "{runs}"  # as an argument of a step: the folder where runs are kept

LEAST_SECONDS = 20  # a step that could not even start is left for the next time


@dataclass(frozen=True)
class Step:
    """Arguments of the Python interpreter, with `{runs}` for the folder of runs, and what the step is called.

    By these it is known, so that it is the same wherever runs are kept.
    """

    name: str
    run: tuple[str, ...]


@dataclass(frozen=True)
class GpuPlan:
    """The folder of the base, its recipe (None: a model that is there already), and the steps in order: those
    of the file, the notebooks that need no base, the base, the notebooks that start from it, and those that
    the file names `last`.
    """

    folder: Path
    recipe: BaseRecipe | None
    steps: tuple[Step, ...]

    @classmethod
    def read(cls, path: Path, experiments: Path = INDEX) -> "GpuPlan":
        """The plan of a YAML file and an index of experiments.

        Raises ValueError for keys that are missing or unknown, steps named twice, a notebook that starts from
        another base, and a last one that has no profile `gpu`.
        """
        values = read_mapping(path, "base: and steps:")
        if set(values) - {"last"} != {"base", "steps"} or "folder" not in values["base"]:
            raise ValueError(f"{path}: expected the keys base (folder, recipe) and steps, and perhaps last")
        recipe = values["base"].get("recipe")
        try:
            made = None if recipe is None else read_fields(BaseRecipe, recipe)
            steps = tuple(Step(step["name"], tuple(map(str, step["run"]))) for step in values["steps"])
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from error
        folder = Path(values["base"]["folder"])
        base = Step("base", ("-m", "sinklora", "gpu", "--base", "--runs", RUNS, "--config", str(path)))
        apart, from_base = _notebook_steps(load_experiments(experiments), folder)
        last = values.get("last") or []
        known = [step.name for step in (*apart, *from_base)]
        check_among(f"{path}: last", last, f"notebooks with a profile {PROFILE!r}", known)
        steps = tuple(sorted((*steps, *apart, base, *from_base), key=lambda step: step.name in last))
        names = [step.name for step in steps]
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: steps are named twice in {names}")
        return cls(folder, made, steps)


def _notebook_steps(experiments: Sequence[Experiment], base: Path) -> tuple[list[Step], list[Step]]:
    """A step for each notebook with a profile `gpu`: those without a base, and those that start from it."""
    apart: list[Step] = []
    from_base: list[Step] = []
    for experiment in experiments:
        if PROFILE in experiment.parameters:
            name = experiment.notebook
            command = ("-m", "sinklora", "reproduce", "--runs", RUNS, "--profile", PROFILE, "--only", name)
            step = Step(name, command)
            starts_from = base_of(experiment.parameters[PROFILE])
            if starts_from not in (None, base.as_posix()):
                raise ValueError(
                    f"folder={base.as_posix()!r}: {name} starts from {starts_from!r}; name one folder"
                )
            (apart if starts_from is None else from_base).append(step)
    return apart, from_base


def make_gpu_base(plan: GpuPlan, *, runs: Path) -> Path:
    """Train the plan's base, or go on, or reuse it; returns its folder, where the notebooks look for it.

    A copy made from another recipe or other data is replaced. Raises FileNotFoundError where there is neither
    model nor recipe, ValueError where the folder of a recipe holds a model of another origin.
    """
    if plan.recipe is None:
        if not (plan.folder / "config.json").is_file():
            raise FileNotFoundError(f"folder={str(plan.folder)!r}: no model there, and no recipe to make one")
        return plan.folder
    made = make_base(plan.recipe, runs=runs)
    if plan.folder.exists() and not (plan.folder / "record.json").is_file():
        raise ValueError(
            f"folder={str(plan.folder)!r}: holds a model that no recipe made; leave out recipe to use it, "
            "or give another folder"
        )
    mark = plan.folder / MADE_FROM
    if not mark.is_file() or mark.read_text(encoding="utf-8") != made.name:
        temporary = plan.folder.with_name(f".{plan.folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(made, temporary)
        (temporary / MADE_FROM).write_text(made.name, encoding="utf-8")
        shutil.rmtree(plan.folder, ignore_errors=True)
        temporary.rename(plan.folder)
    return plan.folder


def make_real_study(
    *, runs: Path, minutes: float, workers: int, say: Callable[[str], None] = print
) -> list[str]:
    """The runs and measurements of the real model's notebook, several at a time; names those not done.

    What is finished stays; after so many minutes nothing new is begun. Raises FileNotFoundError, before any
    work, for texts that are not on this machine.
    """
    [experiment] = [entry for entry in load_experiments() if entry.notebook == REAL_MODEL]
    source = Path("notebooks") / f"{REAL_MODEL}.ipynb"
    study = study_of(declared_parameters(source) | experiment.parameters[PROFILE])
    check_texts(study.recipe)
    named = list(tasks(study, runs=runs))
    names = [name for name, _ in named]

    def told(place: int, what: str) -> None:
        say(f"{names[place]}: {what}")

    work = [task for _, task in named]
    done = run_side_by_side(work, workers=workers, seconds=60 * minutes, say=told)
    return [name for name, is_done in zip(names, done, strict=True) if not is_done]


def check_gpu() -> None:
    """RuntimeError where torch sees no GPU: results/gpu, or paper, must not hold what a CPU took."""
    if not torch.cuda.is_available():
        raise RuntimeError(
            "torch.cuda is not available: this is for a machine with a GPU and a CUDA build of torch; "
            "without one use make reproduce and make bench"
        )


def run_steps(
    plan: GpuPlan,
    *,
    runs: Path,
    minutes: float,
    commit: str | None,
    only: str = "",
    say: Callable[[str], None] = print,
    needs_gpu: bool = True,
) -> list[str]:
    """Run the steps that are left, at most so many minutes; returns the names of those not finished.

    A failed step does not stop the next ones. The output of a finished step is kept in its run directory in
    `runs`, where the steps keep their own runs too. `commit`: whose code runs; None where files were changed
    since, so that no step counts as finished. Raises RuntimeError without a GPU, unless not `needs_gpu`, and
    ValueError where no step's name starts with `only`.
    """
    if needs_gpu:
        check_gpu()
    chosen = [step for step in plan.steps if step.name.startswith(only)]
    if only and not chosen:
        raise ValueError(f"only={only!r}: the steps are {', '.join(step.name for step in plan.steps)}")
    end = time.monotonic() + 60 * minutes
    if commit is None:
        say("the code is no commit's (files changed since, or no clone): steps that finished run again")
    left = []
    for step in chosen:
        key = {"step": step.name, "run": list(step.run), "commit": commit}
        run = RunDirectory(runs, key, prefix=f"gpu-{step.name}")
        with run.lock(wait=True):  # two starts would time each other
            if commit is not None and run.state() == "finished":
                say(f"{step.name}: finished before")
                continue
            seconds = end - time.monotonic()
            if seconds < LEAST_SECONDS or not _run(step, run, seconds, say):
                left.append(step.name)
    return left


def _run(step: Step, run: RunDirectory, seconds: float, say: Callable[[str], None]) -> bool:
    arguments = [str(run.root) if argument == RUNS else argument for argument in step.run]
    say(f"{step.name}: {' '.join(arguments)}")
    log = run.create() / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        try:
            code = _call(arguments, seconds, file)
        except subprocess.TimeoutExpired:
            say(f"{step.name}: stopped after {seconds:.0f} s; it goes on the next time")
            return False
    tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
    if code:
        say(f"{step.name}: failed ({code})\n{tail}")
        return False
    say(tail)
    run.finish(["log.txt"])
    return True


def _call(arguments: Sequence[str], seconds: float, log: TextIO) -> int:
    """Exit status of the interpreter with these arguments; raises subprocess.TimeoutExpired.

    A process that lived on would hold the card against the next step.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    finally:  # also where this process is told to stop: a session of its own hears nothing of that
        end_family(process)
