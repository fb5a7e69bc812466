"""The commands `reproduce`, `verify`, `gpu` and `report`. Nothing heavy is imported until they run."""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from sinklora.records.comma_lists import read_list
from sinklora.refusals import told_in_a_sentence

if TYPE_CHECKING:
    from sinklora.reproduction.places import Places

ResultsFolder = Annotated[
    Path | None, typer.Option(help="where results go; the checkout's results, or ./results without one")
]
RunsFolder = Annotated[
    Path | None, typer.Option(help="where runs are kept; the checkout's runs, or ./runs without one")
]


@told_in_a_sentence
def reproduce_command(
    profile: Annotated[
        str,
        typer.Option(
            help="quick: reduced; full: what is committed, hours; gpu; paper; "
            "or smoke: toy size, measures nothing"
        ),
    ] = "quick",
    only: Annotated[
        str, typer.Option(help="run the notebooks whose names start with this, or one of these: 02,06")
    ] = "",
    seeds: Annotated[str, typer.Option(help="seeds separated by commas, in place of the profile's")] = "",
    results: ResultsFolder = None,
    runs: RunsFolder = None,
    wait: Annotated[bool, typer.Option(help="wait for runs that another process makes")] = True,
) -> None:
    """Reproduce the tables and figures of a profile, into results/PROFILE.

    A notebook that fails stops it; runs and measurements already made are reused the next time. At the end
    stands what became of each of the paper's claims here, beside the committed results.
    """
    from sinklora.reproduction.notebooks import execute, plan, with_texts
    from sinklora.reproduction.places import INDEX, find_places
    from sinklora.reproduction.report.experiments import load_experiments

    places = find_places(results, runs)
    experiments = load_experiments(places.sources / INDEX)
    chosen = plan(experiments, profile, only, read_list("seeds", seeds, int), places.notebooks)
    need_gpu_for(profile)
    stop_when_told()
    ready_environment(wait)
    for experiment, parameters in with_texts(chosen, only, places, typer.echo):
        typer.echo(f"{experiment.notebook}: {experiment.reproduces}")
        started = time.monotonic()
        execute(experiment, profile, parameters, places)
        typer.echo(f"{experiment.notebook}: {(time.monotonic() - started) / 60:.1f} minutes")
    if profile != "smoke":
        write_report(places, profile)


def write_report(places: "Places", profile: str) -> None:
    """Write the pages of a profile's results, and print what became of each claim."""
    from sinklora.reproduction.report.experiments import COMMITTED
    from sinklora.reproduction.report.index import write_index, write_own
    from sinklora.reproduction.report.profile_agreement import print_agreement

    if profile in COMMITTED and places.is_usual:
        write_index(places.sources)
    else:
        write_own(profile, places.results, places.sources)
    print_agreement(places.results, profile, places.sources / "results")


def ready_environment(wait: bool) -> None:
    """What the kernels of notebooks find in their environment."""
    from sinklora.evaluate.memory import KEEP_MEMORY

    # Read by the C library when a process starts, so they reach the kernels and not this process.
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    if not wait:
        os.environ["SINKLORA_WAIT"] = "0"


def stop_when_told() -> None:
    """Where a scheduler or a closed terminal ends this process, it ends as after an error does; what it was
    started to ignore (`nohup`) it goes on ignoring.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


@told_in_a_sentence
def verify_command(
    profile: Annotated[str, typer.Option(help="whose committed results")] = "full",
    cells: Annotated[int, typer.Option(min=1, help="how many numbers each check draws")] = 3,
    seed: Annotated[int, typer.Option(help="of the draw; -1: another one each time")] = -1,
    only: Annotated[str, typer.Option(help="the checks whose names start with this")] = "",
) -> None:
    """Make a random few of the committed numbers again, from nothing, and compare them.

    Ends with exit code 1 where one differs by more than its tolerance, and where none could be compared.
    """
    _need_clone()
    import secrets
    import tempfile

    from sinklora.reproduction.verification import verify

    drawn = secrets.randbelow(10_000) if seed < 0 else seed
    typer.echo(f"seed {drawn} of the draw; nats a token: committed, made again, tolerance")
    compared = different = 0
    with tempfile.TemporaryDirectory() as folder:
        for cell in verify(profile, cells=cells, seed=drawn, runs=Path(folder), only=only):
            compared += not cell.reason
            different += not cell.agrees
            typer.echo(cell.told())
    if compared and not different:
        typer.echo(f"all agree ({compared} compared)")
        return
    typer.echo(f"{different} of {compared} differ" if compared else "nothing was compared")
    raise typer.Exit(1)


@told_in_a_sentence
def gpu_command(
    config: Annotated[Path, typer.Option(help="the plan")] = Path("configs/gpu.yaml"),
    runs: Annotated[Path, typer.Option(help="where runs are kept")] = Path("runs"),
    minutes: Annotated[float, typer.Option(help="stop in time, and go on the next time")] = 100_000.0,
    only: Annotated[str, typer.Option(help="the steps whose names start with this")] = "",
    base: Annotated[bool, typer.Option("--base", help="make the base model and nothing else")] = False,
    study: Annotated[bool, typer.Option("--study", help="the real model's runs and nothing else")] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes that share the card, for --study")] = 3,
) -> None:
    """Run everything that wants a GPU, into results/gpu; what this commit's code finished stays.

    Ends with exit code 1 where steps are left.
    """
    stop_when_told()
    from sinklora.records.provenance import unchanged_commit
    from sinklora.reproduction.gpu import GpuPlan, make_gpu_base, make_real_study, run_steps

    _need_gpu()
    _need_clone()
    if not config.is_file():
        raise FileNotFoundError(f"config={str(config)!r}: no such file; configs/gpu.yaml is one")
    plan = GpuPlan.read(config)
    if base:
        typer.echo(make_gpu_base(plan, runs=runs))
        return
    if study:
        left = make_real_study(runs=runs, minutes=minutes, workers=workers, say=typer.echo)
    else:
        commit = unchanged_commit()
        left = run_steps(plan, runs=runs, minutes=minutes, commit=commit, only=only, say=typer.echo)
    if left:
        typer.echo(f"not finished: {', '.join(left)}")
        raise typer.Exit(1)


@told_in_a_sentence
def report_command() -> None:
    """Write results/README.md, its pages, and what README.md and docs quote, from the results there are."""
    _need_clone()
    from sinklora.reproduction.report.index import write_index

    write_index()


def _need_clone() -> None:
    index = Path("notebooks/experiments.yaml")
    if not index.is_file():
        raise FileNotFoundError(f"{index}: not there; run this at the root of a clone of the repository")


def need_gpu_for(profile: str) -> None:
    """Refuse a profile that is made for a GPU where there is none."""
    from sinklora.reproduction.report.experiments import ON_GPU

    if profile in ON_GPU:
        _need_gpu()


def _need_gpu() -> None:
    from sinklora.reproduction.gpu import check_gpu

    try:
        check_gpu()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
