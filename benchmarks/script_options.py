"""Command lines of the benchmarks: a frozen dataclass is one, and says everything about each option once.

A field's annotation holds its type, its range and its help: `Annotated[Count, typer.Option(help="rounds")]`.
A field of several values is one option with commas, `--batches 1,8,32` for `Distinct[Count]`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import torch
import typer
from pydantic import Field

from sinklora.records.checks import Count, one_of
from sinklora.records.comma_lists import read_list
from sinklora.refusals import told_in_a_sentence

Options = TypeVar("Options")

HAS_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if HAS_CUDA else "cpu"
DTYPE = "bfloat16" if HAS_CUDA else "float32"
CORES = os.cpu_count() or 1
OUT = Path("out/benchmarks")
RUNS = Path("runs")

Device = Annotated[str, one_of(("cpu", "cuda") if HAS_CUDA else ("cpu",)), typer.Option(help="cpu or cuda")]
Dtype = Annotated[
    str,
    one_of(("float32", "bfloat16", "float16")),
    typer.Option(help="of the numbers: float32, bfloat16 or float16"),
]
KeptShare = Annotated[float, Field(gt=0, le=1)]
OutFolder = Annotated[Path, typer.Option(help="folder of the results")]
Repeats = Annotated[Count, typer.Option(help="rounds that are measured")]
RunsFolder = Annotated[Path, typer.Option(help="where measurements are kept")]
Threads = Annotated[Count, typer.Option(help="of the CPU")]


def script(work: Callable[[Options], None], kind: type[Options]) -> typer.Typer:
    """The command line that reads options of a kind and does the work; wrong ones end it with exit code 2.

    Its help is the docstring of the module that `work` is from.
    """
    hints = get_type_hints(kind, include_extras=True)

    @told_in_a_sentence
    def command(**values: Any) -> None:
        work(kind(**{name: _value(name, value, hints[name]) for name, value in values.items()}))

    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    parameters = [_parameter(field, hints[field.name]) for field in fields]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # which Typer reads
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    paragraphs = (inspect.getdoc(inspect.getmodule(work)) or "").split("\n\n")
    help_text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    application.command(help=help_text)(command)
    return application


def settings_of(options: Any) -> dict[str, Any]:
    """What decides a measurement, as JSON holds it: every option but files and folders."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if not isinstance(value, Path)}


def _parameter(field: dataclasses.Field[Any], hint: Any) -> Parameter:
    """What Typer makes an option of: text in place of several values."""
    default: Any = Parameter.empty if field.default is dataclasses.MISSING else field.default
    if _holds_several(hint):
        hint = Annotated[str, *hint.__metadata__]
        default = default if default is Parameter.empty else ",".join(map(str, default))
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _value(name: str, value: Any, hint: Any) -> Any:
    """What a field holds for what Typer read."""
    if not _holds_several(hint):
        return value
    return tuple(read_list(name, value, _plain(get_args(_plain(hint))[0])))


def _holds_several(hint: Any) -> bool:
    return get_origin(_plain(hint)) is tuple


def _plain(hint: Any) -> Any:
    """A type without its range and its help."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
