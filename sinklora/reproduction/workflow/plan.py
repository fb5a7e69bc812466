"""The jobs of a profile as a file: fine-tunes, notebooks and what they need, with what each asks for.

`workflow/Snakefile` reads that file and nothing else, so that a node of a cluster decides nothing anew.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sinklora.records.files import contents_hash, json_hash, write_json
from sinklora.reproduction.base_model.study import BaseRecipe
from sinklora.reproduction.extension.recipe import base_of
from sinklora.reproduction.places import Places
from sinklora.reproduction.report.experiments import Experiment
from sinklora.reproduction.workflow.reads import reads_hash, versions_hash
from sinklora.reproduction.workflow.resources import Machine, Resources, of_fine_tune, of_notebook
from sinklora.reproduction.workflow.trainings import all_parameters, fine_tunes
from sinklora.train.spec import TrainSpec

Chosen = Sequence[tuple[Experiment, Mapping[str, Any]]]

PACKAGE = Path(__file__).resolve().parents[2]

READ = ("notebooks", "configs", "data/base", "data/paper_numbers.csv")  # of the sources, beside the package


@dataclass(frozen=True)
class NotebookJob:
    """A notebook: its parameters in the profile, the fine-tunes that come before, its resources, and the hash
    of the texts that it reads.
    """

    parameters: Mapping[str, Any]
    needs: tuple[str, ...]
    base: str | None
    resources: Resources
    reads: str = ""


@dataclass(frozen=True)
class WorkflowPlan:
    """All jobs of a profile, by name; `bases`: those of `NotebookJob.base` that a job has to make first, with
    their recipes.
    """

    profile: str
    fine_tunes: Mapping[str, TrainSpec]
    resources: Mapping[str, Resources]
    notebooks: Mapping[str, NotebookJob]
    bases: Mapping[str, BaseRecipe] = field(default_factory=dict)

    def write(self, path: Path, places: Places, python: str) -> None:
        """Write what the Snakefile reads: names, dependencies, resources, folders, the interpreter, and what
        the code is, with the packages that it stands on, as one hash.
        """
        tunes = {
            name: {
                "spec": asdict(spec),
                "resources": asdict(self.resources[name]),
                "base": spec.base if spec.base in self.bases else "",
            }
            for name, spec in self.fine_tunes.items()
        }
        notebooks = {
            name: {
                "parameters": dict(job.parameters),
                "needs": list(job.needs),
                "base": job.base if job.base in self.bases else "",
                "resources": asdict(job.resources),
                "reads": job.reads,
            }
            for name, job in self.notebooks.items()
        }
        folders = {name: str(folder) for name, folder in asdict(places).items()}
        code = json_hash([contents_hash(PACKAGE, *(places.sources / name for name in READ)), versions_hash()])
        head = {"profile": self.profile, "python": python, "places": folders, "code": code}
        head["bases"] = {name: asdict(recipe) for name, recipe in self.bases.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**head, "fine_tunes": tunes, "notebooks": notebooks})


def make_plan(
    chosen: Chosen,
    profile: str,
    places: Places,
    machine: Machine,
    *,
    bases: Mapping[str, BaseRecipe] | None = None,
    recipe: str = "",
) -> WorkflowPlan:
    """The jobs of the notebooks of `sinklora.reproduction.notebooks.plan`.

    `bases`: those that are made by a job of their own, with their recipes; `recipe` replaces that of every
    notebook that has one. Paths of recipes are relative to the working directory, which is the sources'.
    """
    bases = bases or {}
    shapes = {name: made_by.shape for name, made_by in bases.items()}
    specs: dict[str, TrainSpec] = {}
    resources: dict[str, Resources] = {}
    jobs: dict[str, NotebookJob] = {}
    for experiment, overrides in chosen:
        parameters = all_parameters(experiment, overrides, places.notebooks)
        if recipe and "recipe" in parameters:
            parameters["recipe"] = recipe
        notebook_specs = {job_name(spec): spec for spec in fine_tunes(experiment.notebook, parameters)}
        for name, spec in notebook_specs.items():
            if name not in resources:
                resources[name] = of_fine_tune(spec, machine, shapes, places.runs)
        specs |= notebook_specs
        models = [shapes.get(name, name) for name in _models_of(parameters)]
        asked = of_notebook([resources[name] for name in notebook_specs], parameters, machine, models)
        jobs[experiment.notebook] = NotebookJob(
            overrides, tuple(notebook_specs), base_of(parameters), asked, reads_hash(parameters)
        )
    named = {job.base for job in jobs.values()}
    made = {name: made_by for name, made_by in bases.items() if name in named}
    return WorkflowPlan(profile, specs, resources, jobs, made)


def _models_of(parameters: Mapping[str, Any]) -> set[str]:
    """Names of the models that a notebook reads: its base or its recipe's, and a real one beside it."""
    return {name for name in (base_of(parameters), parameters.get("real_base")) if name}


def job_name(spec: TrainSpec) -> str:
    """A name for a fine-tune that reads well and that no other has."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", spec.pattern).strip("_")
    return f"{readable}-{spec.context}-seed{spec.seed}-{json_hash(asdict(spec))[:10]}"
