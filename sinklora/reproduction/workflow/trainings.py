"""What depends on what: the fine-tunes that a notebook's parameters ask for, by the studies that it makes.

What a notebook decides while it runs (rates beyond the grid, steps in equal time, the longest context that
fits) is not known before; it trains that itself.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sinklora.reproduction.ablations import study as ablations
from sinklora.reproduction.extension import study as extension
from sinklora.reproduction.extension.bounded import bounded_study_of
from sinklora.reproduction.extension.recipe import Recipe, read_recipe
from sinklora.reproduction.extension.selection import specs_to_search
from sinklora.reproduction.longbench.study import extended_models
from sinklora.reproduction.real_model.study import study_of as real_study_of
from sinklora.reproduction.report.experiments import Experiment, declared_parameters
from sinklora.reproduction.retrieval.study import study_of as retrieval_study_of
from sinklora.train.divergence import DivergedError
from sinklora.train.run import train
from sinklora.train.spec import TrainSpec

Parameters = Mapping[str, Any]


def all_parameters(experiment: Experiment, given: Parameters, notebooks: Path) -> dict[str, Any]:
    """The parameters that a notebook runs with: those given, its own defaults for the others."""
    return declared_parameters(notebooks / f"{experiment.notebook}.ipynb") | dict(given)


def fine_tunes(notebook: str, parameters: Parameters) -> tuple[TrainSpec, ...]:
    """The training runs of a notebook that are known before it runs, each once. `parameters`: all of them."""
    specs_of = STUDIES.get(notebook)
    return tuple(dict.fromkeys(specs_of(parameters))) if specs_of else ()


def mark_of(spec: TrainSpec, runs: Path) -> dict[str, str]:
    """Train a fine-tune, go on with it, or find it finished: its mark, which says where the `run` is.

    One that diverges has none, but how it `diverged`: where rates are searched for that is an outcome.
    """
    try:
        return {"run": str(train(spec, runs=runs, progress=False).path)}
    except DivergedError as error:
        return {"diverged": str(error)}


def _perplexity(parameters: Parameters) -> Iterator[TrainSpec]:
    recipe, grid = _recipe(parameters), parameters["grid"]
    yield from specs_to_search(recipe, parameters["patterns"], grid=grid)
    for steps in parameters["steps_tried"]:
        yield from specs_to_search(recipe, ["full"], grid=grid, steps=steps)
    study = extension.study_of(recipe, parameters)
    yield from study.specs()
    yield from bounded_study_of(study, parameters).specs()


def _retrieval(parameters: Parameters) -> Iterator[TrainSpec]:
    yield from retrieval_study_of(_recipe(parameters), parameters).specs()


def _longbench(parameters: Parameters) -> Iterator[TrainSpec]:
    if parameters["context"]:
        yield from extended_models(_recipe(parameters), parameters).specs()


def _ablations(parameters: Parameters) -> Iterator[TrainSpec]:
    recipe, methods = _recipe(parameters), ablations.methods_of(parameters)
    yield from specs_to_search(recipe, methods.searched, grid=parameters["grid"])
    yield from ablations.ablation_study(recipe, methods.all, parameters["seeds"]).specs()
    lengths = sorted({*parameters["lengths"], recipe.training.context})
    for study in ablations.studies_at(recipe, methods.others, parameters["seeds"], lengths):
        yield from study.specs()


def _real_model(parameters: Parameters) -> Iterator[TrainSpec]:
    study = real_study_of(parameters)
    for positions in study.positions:
        yield from specs_to_search(study.with_positions(positions), study.patterns, grid=True)


def _recipe(parameters: Parameters) -> Recipe:
    return read_recipe(parameters["recipe"]).reduced(parameters.get("pieces", 0))


STUDIES: Mapping[str, Callable[[Parameters], Iterator[TrainSpec]]] = {
    "02_perplexity": _perplexity,
    "04_retrieval": _retrieval,
    "05_longbench": _longbench,
    "08_ablations": _ablations,
    "09_real_model": _real_model,
}
