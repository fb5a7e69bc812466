"""The notebooks of a profile, in order, each executed into `results/<profile>/notebooks`."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from sinklora.records.checks import check_choice
from sinklora.records.comma_lists import read_list
from sinklora.records.files import atomic_write
from sinklora.records.runs import WAITING
from sinklora.reproduction.extension.recipe import missing_texts, read_recipe
from sinklora.reproduction.kernel import private_kernel
from sinklora.reproduction.places import Places
from sinklora.reproduction.report.experiments import (
    PROFILES,
    Experiment,
    check_parameters,
    declared_parameters,
)
from sinklora.reproduction.stopped_notebook import stopped


def plan(
    experiments: Sequence[Experiment],
    profile: str,
    only: str = "",
    seeds: Sequence[int] = (),
    notebooks: Path = Path("notebooks"),
) -> list[tuple[Experiment, dict[str, Any]]]:
    """The notebooks of a profile with their parameters, checked against the notebooks before any runs.

    `only` keeps those whose names start with it, or with one of several such beginnings that commas separate;
    each has to begin the name of one; `seeds` replaces the parameter of that name where a
    notebook has one. Raises ValueError where nothing is left to run or to replace, and for wrong parameters.
    """
    check_choice("profile", profile, PROFILES)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)}: a seed is given twice")
    beginnings = tuple(read_list("only", only, str)) or ("",)
    names = [e.notebook for e in experiments if profile in e.parameters]
    if idle := [part for part in beginnings if not any(name.startswith(part) for name in names)]:
        raise ValueError(
            f"profile={profile!r}, only={only!r}: nothing to run for {', '.join(idle)}; there are {names}"
        )
    chosen = []
    for experiment in experiments:
        if profile not in experiment.parameters or not experiment.notebook.startswith(beginnings):
            continue
        source = notebooks / f"{experiment.notebook}.ipynb"
        parameters = {"profile": profile, **experiment.parameters[profile]}
        if seeds and "seeds" in declared_parameters(source):
            parameters["seeds"] = list(seeds)
        check_parameters(source, parameters)
        chosen.append((experiment, parameters))
    if seeds and not any("seeds" in parameters for _, parameters in chosen):
        raise ValueError(f"seeds={list(seeds)}: none of the notebooks to run has seeds")
    return chosen


def with_texts(
    chosen: Sequence[tuple[Experiment, dict[str, Any]]],
    only: str,
    places: Places,
    say: Callable[[str], None] = print,
) -> list[tuple[Experiment, dict[str, Any]]]:
    """Of a profile's notebooks those whose recipe's texts are on this machine; `say` hears of the others.

    Test texts count for those that read them, which say so by `check_texts`; what is trained on for all.
    What `only` names stays: such a notebook says itself, before any work, what it lacks.
    """
    kept = []
    for experiment, parameters in chosen:
        source = places.notebooks / f"{experiment.notebook}.ipynb"
        recipe = (declared_parameters(source) | parameters).get("recipe")
        with chdir(places.sources):
            tested = "check_texts(" in source.read_text(encoding="utf-8")
            missing = missing_texts(read_recipe(recipe), tested=tested) if recipe and not only else []
        if missing:
            say(
                f"{experiment.notebook}: left out, its texts are not on this machine: {', '.join(missing)} "
                "(docs/reproducing.md says where they are from)"
            )
        else:
            kept.append((experiment, parameters))
    return kept


def execute(experiment: Experiment, profile: str, parameters: dict[str, Any], places: Places) -> Path:
    """Execute one notebook in the sources, into `<profile>/notebooks` of the results.

    Raises NotebookStoppedError, which says where and by what it stopped and leaves what was there as it was.
    """
    import papermill

    source = places.notebooks / f"{experiment.notebook}.ipynb"
    declared = declared_parameters(source)
    where = {name: value for name, value in places.parameters.items() if name in declared}
    check_parameters(source, parameters)
    folder = places.executed(profile)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        executed = Path(scratch) / source.name
        with places.told(), private_kernel() as kernel:
            try:
                papermill.execute_notebook(
                    str(source),
                    str(executed),
                    parameters={**parameters, **where},
                    cwd=str(places.sources),
                    kernel_name="python3",
                    km=kernel,
                    stderr_file=_Waiting(),
                )
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                status = kernel.exit_status
                raise stopped(experiment.notebook, executed, error, status, places) from error
        tidy(executed)
        atomic_write(folder / source.name, executed.read_bytes())
    return folder / source.name


class _Waiting:
    """Shows of a notebook's messages those that say for which process it waits."""

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if line.startswith(WAITING):
                print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def tidy(executed: Path) -> None:
    """Leave results and text in an executed notebook, and the cell with its parameters.

    Out go progress bars, warnings, widgets' remains, and what papermill noted: times that differ each run
    and paths of the machine, among them where its runs are.
    """
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    for name in ("widgets", "papermill"):
        notebook.metadata.pop(name, None)
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        if "injected-parameters" in cell.metadata.get("tags", ()):
            lines = cell.source.splitlines()
            cell.source = "\n".join(line for line in lines if not line.startswith("runs = "))
    nbformat.write(notebook, executed)


def _is_noise(output: Any) -> bool:
    if output.output_type == "stream":
        return bool(output.name == "stderr")
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})
