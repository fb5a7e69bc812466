"""The command `eval`: lm-evaluation-harness under a cache. Nothing heavy is imported until it runs."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sinklora.refusals import raised_by, told_in_a_sentence

OURS, DATA = "Model and cache", "OpenBookQA from local files"

# Everything that is not declared below goes to the harness as it is.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

EVAL_HELP = """Run tasks of lm-evaluation-harness under a cache: log-likelihoods as well as generation.

sinklora eval --pretrained data/base --kv h2o --budget 0.2 --tasks openbookqa --limit 100

All other options are the harness's own and go to it as they are: --tasks, --num_fewshot, --limit, \
--batch_size, --device, --output_path, --log_samples, … The command lm_eval run --help lists them.

Its --model_args (pairs such as dtype=bfloat16,max_length=4096) are the arguments of the model: those of the \
harness's hf model, and also the options below under the same names: pretrained=data/base,kv=h2o,budget=0.2
"""


def _ours(told: str, *names: str, panel: str = OURS, **more: Any) -> Any:
    return typer.Option(*names, help=told, rich_help_panel=panel, **more)


Pretrained = Annotated[str | None, _ours("folder, packaged model or hub name of the model")]

Peft = Annotated[str | None, _ours("folder or hub name of an adapter, of sinklora or of peft")]

Kv = Annotated[
    str | None,
    _ours(
        "cache policy: full (default: the model's own cache), h2o, local, streaming, tova, snapkv, "
        "expected_attention, novelty, replay, …; a wrong one lists all"
    ),
]

Budget = Annotated[
    str | None, _ours("what the cache keeps: a share of the prompt (0.2 or 20%) or tokens (64)")
]

PrefillChunk = Annotated[
    int | None,
    _ours("evict after so many tokens of the prompt; default: after all of it", "--prefill_chunk", min=1),
]

Positions = Annotated[
    str | None,
    _ours("where kept tokens stand: in the text (text, the default) or inside the cache (cache)"),
]

DataFiles = Annotated[
    Path | None,
    _ours("read the task openbookqa from this file, in the hub's format (jsonl)", "--data_files", panel=DATA),
]

TrainFiles = Annotated[
    Path | None,
    _ours("the questions that --num_fewshot shows before each of --data_files", "--train_files", panel=DATA),
]


@told_in_a_sentence
def eval_command(
    context: typer.Context,
    pretrained: Pretrained = None,
    peft: Peft = None,
    kv: Kv = None,
    budget: Budget = None,
    prefill_chunk: PrefillChunk = None,
    positions: Positions = None,
    data_files: DataFiles = None,
    train_files: TrainFiles = None,
) -> None:
    """Run the harness with what these options say of the model, and everything else as it is."""
    model = {
        "pretrained": pretrained,
        "peft": peft,
        "kv": kv,
        "budget": budget,
        "prefill_chunk": prefill_chunk,
        "positions": positions,
    }
    options = {name: value for name, value in model.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        _call_harness(harness_arguments(options, data_files, train_files, context.args, Path(folder)))


def harness_arguments(
    model: dict[str, Any],
    data_files: Path | None,
    train_files: Path | None,
    rest: Sequence[str],
    folder: Path,
) -> list[str]:
    """What the harness's command line is called with: the model `sinklora`, its arguments `model`, `rest`.

    `folder` takes the configuration of a task on local files. Raises ValueError for options that contradict
    one another, before the harness is loaded.
    """
    own, arguments = _parser().parse_known_args(list(rest))
    tasks = [task for some in own.tasks for task in some.split(",")]
    _check_model(own, model, arguments)
    _check_data(own, data_files, train_files, tasks)
    arguments = ["--model", "sinklora", *arguments, *_model_args(own.model_args, model)]
    if own.num_fewshot is not None:
        arguments += ["--num_fewshot", own.num_fewshot]
    if data_files is not None:
        file = _task_file(folder, data_files, train_files)
        tasks = [file if task == "openbookqa" else task for task in tasks]
    if tasks:
        arguments += ["--tasks", ",".join(tasks)]
    return arguments


def _parser() -> argparse.ArgumentParser:
    """Of the harness's options those that have to be known here, spelled as there."""
    parser = argparse.ArgumentParser(prog="sinklora eval", add_help=False, allow_abbrev=False)
    parser.add_argument("-M", "--model", default="sinklora")
    parser.add_argument("-a", "--model_args", nargs="+", default=[])
    parser.add_argument("-f", "--num_fewshot")
    parser.add_argument("-t", "--tasks", nargs="+", default=[])
    return parser


def _check_model(own: argparse.Namespace, model: dict[str, Any], arguments: Sequence[str]) -> None:
    if own.model != "sinklora":
        raise ValueError(f"--model {own.model}: eval runs the model sinklora; for others call lm_eval itself")
    twice = sorted(set(model) & _names(own.model_args))
    if twice:
        raise ValueError(f"--{twice[0]} {model[twice[0]]}: is also among --model_args; give it once")
    in_a_file = any(option.split("=")[0] in ("--config", "-C") for option in arguments)
    if "pretrained" not in set(model) | _names(own.model_args) and not in_a_file:
        raise ValueError("--pretrained: name the model, a folder such as data/base or a name on the hub")
    if {"kv", "budget"} & set(model) and not {"kv", "budget"} & _names(own.model_args):
        from sinklora.cache.policies import make_policy, parse_budget

        make_policy(model.get("kv", "full"), parse_budget(model.get("budget")))


def _check_data(
    own: argparse.Namespace, data_files: Path | None, train_files: Path | None, tasks: list[str]
) -> None:
    if train_files is not None and data_files is None:
        raise ValueError(
            f"--train_files {train_files}: shown before the questions of --data_files; name both"
        )
    if data_files is None:
        return
    if "openbookqa" not in tasks:
        raise ValueError(f"--data_files {data_files}: replaces openbookqa, not among --tasks {tasks}")
    if own.num_fewshot not in (None, "0") and train_files is None:
        raise ValueError(f"--num_fewshot {own.num_fewshot}: name --train_files, the questions to show")


def _names(model_args: Sequence[str]) -> set[str]:
    """Names of the arguments in the harness's --model_args, which are JSON or pairs."""
    if _is_json(model_args):
        return set(_read_json(model_args[0]))
    return {pair.split("=")[0] for pairs in model_args for pair in pairs.split(",")}


def _is_json(model_args: Sequence[str]) -> bool:
    return bool(model_args) and model_args[0].lstrip().startswith("{")


def _read_json(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        told = f"--model_args {text}: is no JSON object ({error}); quote names and texts"
        raise ValueError(told) from error


def _model_args(model_args: Sequence[str], model: dict[str, Any]) -> list[str]:
    """The harness's --model_args of those given and ours."""
    if not model_args and not model:
        return []
    if _is_json(model_args):
        return ["--model_args", json.dumps(_read_json(model_args[0]) | model)]
    # Quoted, since a comma would end a value.
    return ["--model_args", *model_args, *(f"{name}={value!r}" for name, value in model.items())]


def _task_file(folder: Path, data_files: Path, train_files: Path | None) -> str:
    """The configuration of OpenBookQA on local files, as a file that the harness reads."""
    import yaml

    from sinklora.evaluate.openbookqa import openbookqa_task

    file = folder / "openbookqa_local.yaml"
    file.write_text(yaml.safe_dump(openbookqa_task(data_files, train_files)), encoding="utf-8")
    return str(file)


def _call_harness(arguments: list[str]) -> None:
    """The harness's command line; ValueError for what it refuses while it reads its options."""
    from lm_eval.__main__ import cli_evaluate

    import sinklora.evaluate.lm_eval_model  # noqa: F401  (registers the model)

    before, sys.argv = sys.argv, ["lm_eval", *arguments]
    try:
        cli_evaluate()
    except (ValueError, FileNotFoundError) as error:
        if raised_by(error, "lm_eval.config"):
            raise ValueError(f"the harness says: {error}") from error
        raise
    finally:
        sys.argv = before
