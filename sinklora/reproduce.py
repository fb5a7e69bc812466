"""Run the notebooks of a profile in order, each into ``results/<profile>/notebooks``, and rewrite the
index of results.

``python -m sinklora.reproduce --profile cpu`` is what ``make reproduce`` does. A notebook that fails stops
it; runs and measurements already made are reused the next time.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sinklora.experiments import PROFILES, Experiment, check_parameters, load_experiments
from sinklora.report import write_index

# Page faults of freshly mapped memory take a third of a CPU training step: let the C library keep what it
# freed.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def execute(experiment: Experiment, profile: str, parameters: dict[str, Any]) -> Path:
    """Execute one notebook into ``results/<profile>/notebooks``; raises PapermillExecutionError where a
    cell fails.
    """
    import papermill

    source = Path("notebooks") / f"{experiment.notebook}.ipynb"
    output = Path("results") / profile / "notebooks" / source.name
    check_parameters(source, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}")
    papermill.execute_notebook(
        str(source), str(temporary), parameters=parameters, cwd=".", kernel_name="python3"
    )
    tidy(temporary)
    os.replace(temporary, output)
    return output


def tidy(executed: Path) -> None:
    """Drop progress bars, warnings and widgets' remains from an executed notebook; results and text stay."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    nbformat.write(notebook, executed)


def _is_noise(output: Any) -> bool:
    if output.output_type == "stream":
        return bool(output.name == "stderr")
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def main(
    profile: Annotated[str, typer.Option(help=f"one of {', '.join(PROFILES)}")] = "cpu",
    only: Annotated[str, typer.Option(help="run the notebooks whose names start with this")] = "",
    seeds: Annotated[str, typer.Option(help="seeds separated by commas, in place of the profile's")] = "",
) -> None:
    """Reproduce the tables and figures of a profile."""
    if profile not in PROFILES:
        raise typer.BadParameter(f"{profile!r}; known are {', '.join(PROFILES)}")
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        command = [sys.executable, "-m", "sinklora.reproduce", *sys.argv[1:]]
        raise SystemExit(subprocess.call(command, env={**os.environ, **ALLOCATOR}))
    for experiment in load_experiments():
        if profile not in experiment.parameters or not experiment.notebook.startswith(only):
            continue
        parameters = {"profile": profile, **experiment.parameters[profile]}
        if seeds and "seeds" in parameters:
            parameters["seeds"] = [int(seed) for seed in seeds.split(",")]
        typer.echo(f"{experiment.notebook}: {experiment.reproduces}")
        execute(experiment, profile, parameters)
    if profile != "smoke":
        write_index()


if __name__ == "__main__":
    typer.run(main)
