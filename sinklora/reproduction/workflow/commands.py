"""The commands `workflow …`: a profile's jobs, here or on Slurm. Nothing heavy is imported until they run."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinklora.records.comma_lists import read_list
from sinklora.refusals import told_in_a_sentence
from sinklora.reproduction.commands import (
    ResultsFolder,
    RunsFolder,
    need_gpu_for,
    ready_environment,
    stop_when_told,
    write_report,
)

if TYPE_CHECKING:
    from sinklora.reproduction.places import Places
    from sinklora.reproduction.workflow.plan import WorkflowPlan

commands = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The notebooks and their fine-tunes as jobs, on this machine or on Slurm.",
)

ProfileName = Annotated[str, typer.Option(help="quick, full, gpu, paper or smoke")]
Only = Annotated[str, typer.Option(help="the notebooks whose names start with this, or one of these: 02,06")]
Seeds = Annotated[str, typer.Option(help="seeds separated by commas, in place of the profile's")]
TeraFlops = Annotated[
    float, typer.Option(help="TFLOP/s that training sustains; 0: 100 on a GPU, 0.05 on a CPU", min=0)
]
NotebookHours = Annotated[
    float, typer.Option(help="the limit of a notebook; 0: 24 on a GPU, 12 on a CPU", min=0)
]
PlanFile = Annotated[Path, typer.Option(help="the file that `workflow run` wrote")]


@commands.command("run")
@told_in_a_sentence
def run_command(
    profile: ProfileName = "quick",
    on: Annotated[str, typer.Option(help="local or slurm")] = "local",
    only: Only = "",
    seeds: Seeds = "",
    results: ResultsFolder = None,
    runs: RunsFolder = None,
    tflops: TeraFlops = 0.0,
    notebook_hours: NotebookHours = 0.0,
    jobs: Annotated[int, typer.Option(help="at a time; 0: as the profile of `on` says", min=0)] = 0,
    partition: Annotated[str, typer.Option(help="of Slurm")] = "",
    account: Annotated[str, typer.Option(help="of Slurm")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the jobs that are left")] = False,
    wait: Annotated[bool, typer.Option(help="wait for another workflow in the same folder")] = True,
) -> None:
    """Run what is left of a profile's fine-tunes, notebooks and report, each as a job.

    Finished runs are reused; a killed workflow goes on. Ends with exit code 1 where jobs failed.
    """
    from sinklora.reproduction.places import find_places
    from sinklora.reproduction.workflow.launch import (
        folder_of,
        forget_lost_marks,
        lost_marks,
        only_workflow,
        snakemake,
    )

    if on == "local" and not dry_run:
        need_gpu_for(profile)
    places = find_places(results, runs)
    os.chdir(places.sources)
    stop_when_told()
    ready_environment(wait=True)
    folder = folder_of(places, profile)
    # What only lists waits for nobody and changes nothing.
    with nullcontext() if dry_run else only_workflow(folder, wait), TemporaryDirectory() as aside:
        plan_file = (Path(aside) if dry_run else folder) / "plan.json"
        plan = planned(places, profile, only, seeds, tflops, notebook_hours, here=True)
        plan.write(plan_file, places, sys.executable)
        for name in lost_marks(places, plan) if dry_run else forget_lost_marks(places, plan):
            typer.echo(f"{name}: what it made is gone; it is made again")
        options = ["--dry-run"] if dry_run else []
        options += ([f"--cores={jobs}"] if on == "local" else [f"--jobs={jobs}"]) if jobs else []
        resources = {"slurm_partition": partition, "slurm_account": account}
        if asked := [f"{name}={value!r}" for name, value in resources.items() if value]:
            options += ["--default-resources", "tasks=1", "cpus_per_task=2", *asked]
        snakemake(places, folder, on, plan_file, options=options)


@commands.command("check")
@told_in_a_sentence
def check_command(
    profile: ProfileName = "paper",
    recipe: Annotated[
        list[Path] | None, typer.Option(help="in place of the notebooks' own; several are told one by one")
    ] = None,
    only: Only = "",
    seeds: Seeds = "",
    runs: RunsFolder = None,
    tflops: TeraFlops = 0.0,
    notebook_hours: NotebookHours = 0.0,
) -> None:
    """Print the jobs that a profile would submit, with GPU memory and hours; submits nothing."""
    from sinklora.reproduction.places import find_places
    from sinklora.reproduction.workflow.listing import listed
    from sinklora.reproduction.workflow.resources import Machine

    recipes = [str(path.absolute()) for path in recipe or ()]
    places = find_places(None, runs)
    os.chdir(places.sources)
    machine = Machine.of_profile(profile, tflops, notebook_hours)
    for recipe_path in recipes or [""]:
        typer.echo(
            listed(planned(places, profile, only, seeds, tflops, notebook_hours, recipe_path), machine)
        )


def planned(
    places: "Places",
    profile: str,
    only: str,
    seeds: str,
    tflops: float,
    notebook_hours: float,
    recipe: str = "",
    here: bool = False,
) -> "WorkflowPlan":
    """The plan of a profile, `here` without the notebooks whose texts are not on this machine; the working
    directory is the sources'.
    """
    from sinklora.reproduction.gpu import GpuPlan
    from sinklora.reproduction.notebooks import plan, with_texts
    from sinklora.reproduction.places import INDEX
    from sinklora.reproduction.report.experiments import load_experiments
    from sinklora.reproduction.workflow.plan import make_plan
    from sinklora.reproduction.workflow.resources import Machine

    experiments = load_experiments(places.sources / INDEX)
    chosen = plan(experiments, profile, only, read_list("seeds", seeds, int), places.notebooks)
    chosen = with_texts(chosen, only, places, typer.echo) if here else chosen
    bases = {}
    if profile == "gpu":
        base = GpuPlan.read(Path("configs/gpu.yaml"))
        bases = {str(base.folder): base.recipe} if base.recipe else {}
    machine = Machine.of_profile(profile, tflops, notebook_hours)
    return make_plan(chosen, profile, places, machine, bases=bases, recipe=recipe)


@commands.command("fine-tune", hidden=True)
@told_in_a_sentence
def fine_tune_command(
    name: str, plan: PlanFile, mark: Annotated[Path, typer.Option(help="written when it is done")]
) -> None:
    """Train one fine-tune of a plan, go on with it, or find it finished; then leave its mark.

    One that diverges is done, too: a notebook that needs it says so.
    """
    from sinklora.records.files import write_json
    from sinklora.reproduction.workflow.trainings import mark_of
    from sinklora.train.spec import TrainSpec

    mark = mark.absolute()  # the working directory changes
    values, places = _read_job(plan)
    said = mark_of(TrainSpec.from_dict(values["fine_tunes"][name]["spec"]), places.runs)
    write_json(mark, said)
    typer.echo(" ".join(said.values()))


@commands.command("notebook", hidden=True)
@told_in_a_sentence
def notebook_command(name: str, plan: PlanFile) -> None:
    """Execute one notebook of a plan."""
    from sinklora.reproduction.notebooks import execute
    from sinklora.reproduction.places import INDEX
    from sinklora.reproduction.report.experiments import load_experiments

    values, places = _read_job(plan)
    [experiment] = [e for e in load_experiments(places.sources / INDEX) if e.notebook == name]
    typer.echo(execute(experiment, values["profile"], values["notebooks"][name]["parameters"], places))


@commands.command("base", hidden=True)
@told_in_a_sentence
def base_command(plan: PlanFile) -> None:
    """Make the base that notebooks of the profile `gpu` start from."""
    from sinklora.reproduction.gpu import GpuPlan, make_gpu_base

    _, places = _read_job(plan)
    typer.echo(make_gpu_base(GpuPlan.read(Path("configs/gpu.yaml")), runs=places.runs))


@commands.command("report", hidden=True)
@told_in_a_sentence
def report_of_plan_command(plan: PlanFile) -> None:
    """Write the pages of a plan's results, and print what became of each claim."""
    values, places = _read(plan)
    write_report(places, values["profile"])


def _read_job(plan: Path) -> tuple[dict[str, Any], "Places"]:
    """The same as `_read`, where there is what the profile is made for."""
    values, places = _read(plan)
    need_gpu_for(values["profile"])
    return values, places


def _read(plan: Path) -> tuple[dict[str, Any], "Places"]:
    """The plan's values and places; the working directory becomes the sources'."""
    from sinklora.reproduction.places import Places

    stop_when_told()
    ready_environment(wait=True)
    values = json.loads(plan.read_text(encoding="utf-8"))
    places = Places(**{name: Path(folder) for name, folder in values["places"].items()})
    os.chdir(places.sources)
    return values, places
