"""LongBench: predictions of a causal language model under any cache, and their scores.

``python -m sinklora.evaluate.longbench.cli score FOLDER`` scores prediction files in LongBench's format;
``python -m sinklora.evaluate.longbench.cli predict`` makes them and goes on where a killed run was.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from sinklora.cache.policies import POLICIES, make_policy, parse_budget
from sinklora.evaluate.longbench.metrics import category_table, check_references, score_file
from sinklora.evaluate.longbench.predictions import as_it_is, chat_format, check_request, predict
from sinklora.evaluate.longbench.records import Record, load_records
from sinklora.evaluate.longbench.tasks import DATASETS, SMALL, scored_as, task_of
from sinklora.hf.device import default_device
from sinklora.records.files import write_json
from sinklora.records.tables import markdown

commands = typer.Typer(add_completion=False, help="Predict and score LongBench.")


def score_folder(folder: Path) -> pd.DataFrame:
    """Scores of the files ``<data set>.jsonl`` in `folder`, in LongBench's order: columns dataset, category,
    metric, predictions (how many), score (0 to 100).

    Raises FileNotFoundError where there is none, ValueError for one that names no data set or is damaged.
    """
    files = {path.stem: path for path in Path(folder).glob("*.jsonl")}
    if not files:
        raise FileNotFoundError(f"{folder} has no files named <data set>.jsonl")
    for name in files:
        scored_as(name)
    rows = []
    for name in [name for name in (*DATASETS, *SMALL) if name in files]:
        value, count = score_file(name, files[name])
        category = DATASETS[scored_as(name)].category
        metric = task_of(name).metric.removesuffix("_score")
        rows.append((name, category, metric, count, value))
    return pd.DataFrame(rows, columns=["dataset", "category", "metric", "predictions", "score"])


@commands.command("score")
def score_command(
    folder: Annotated[Path, typer.Argument(help="folder of files <data set>.jsonl: pred, answers, …")],
) -> None:
    """Score a folder of prediction files and print two tables: the data sets, and the category averages."""
    with _refused():
        scores = score_folder(folder)
        table = category_table(dict(zip(scores["dataset"], scores["score"], strict=True)))
    typer.echo(markdown(scores.round(2)))
    typer.echo("\n" + markdown(table.round(2)))


@commands.command("predict")
def predict_command(
    model: Annotated[str, typer.Option(help="local folder or hub name of a causal language model")],
    data: Annotated[str, typer.Option(help="folder of files <data set>.jsonl, or a data set of the hub")],
    out: Annotated[Path, typer.Option(help="folder for the prediction files of this model and settings")],
    max_length: Annotated[int, typer.Option(help="tokens of prompt; leave room for up to 512 more")],
    kv: Annotated[str, typer.Option(help=f"cache policy: {', '.join(POLICIES)}")] = "full",
    budget: Annotated[
        str, typer.Option(help="of the cache: a share of the prompt (0.2) or tokens (512)")
    ] = "",
    dataset: Annotated[list[str] | None, typer.Option(help="which; repeat for more; default: all")] = None,
    limit: Annotated[int | None, typer.Option(help="records of each data set; default: all")] = None,
    chat: Annotated[bool, typer.Option(help="put prompts into the model's chat template")] = False,
) -> None:
    """Write greedy predictions, one file per data set; run it again after a kill and it goes on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _refused():
        amount = parse_budget(budget)
        make_policy(kv, amount)
    sets = {
        name: _records(data, name, max_length=max_length, limit=limit)
        for name in dataset or _datasets_in(data)
    }
    settings = {"model": model, "max_length": max_length, "kv": kv, "budget": amount, "chat": chat}
    _check_settings(out, settings)
    tokenizer = AutoTokenizer.from_pretrained(model)
    with _refused():
        prompt_format = chat_format(tokenizer) if chat else as_it_is
    network = AutoModelForCausalLM.from_pretrained(model, dtype="auto", device_map=default_device())
    factory = _cache_factory(network, kv, amount)
    _keep_settings(out, settings)
    for name, records in sets.items():
        predict(
            network,
            tokenizer,
            records,
            name,
            max_length=max_length,
            out=out / f"{name}.jsonl",
            cache_factory=factory,
            prompt_format=prompt_format,
            limit=limit,
        )


def _datasets_in(data: str) -> Sequence[str]:
    """Every data set that a folder has a file of; of a name on the hub, all 21."""
    if not Path(data).is_dir():
        return list(DATASETS)
    found = [name for name in (*DATASETS, *SMALL) if (Path(data) / f"{name}.jsonl").is_file()]
    if not found:
        raise typer.BadParameter(f"data={data!r} has no files named <data set>.jsonl")
    return found


def _records(data: str, name: str, *, max_length: int, limit: int | None) -> list[Record]:
    """The records of a data set, all checked: a fault would else be met after hours of predictions."""
    with _refused():
        scored_as(name)
        records = load_records(data, name)
        check_request(records, name, max_length, limit=limit)
        for number, record in enumerate(records, 1):
            check_references(name, record.answers, f"{data}, {name}, record {number}: 'answers'")
    return records


@contextmanager
def _refused() -> Iterator[None]:
    """Faults in what was asked for, told without a traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder of other settings: a continued file would mix two models."""
    file = folder / "settings.json"
    if file.is_file():
        with _refused():
            kept = json.loads(file.read_text(encoding="utf-8"))
        if kept != settings:
            raise typer.BadParameter(f"out: {file} says {kept}, this run {settings}; use another folder")


def _keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write settings.json beside the predictions, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "settings.json").is_file():
        write_json(folder / "settings.json", settings)


def _cache_factory(model: Any, kv: str, budget: int | float | None) -> Callable[[], Any] | None:
    if not POLICIES[kv].bounded:
        return None
    factory: Callable[[], Any] | None
    factory = importlib.import_module("sinklora.hf.budget_cache").cache_factory(model, kv, budget)
    return factory


if __name__ == "__main__":
    commands()
