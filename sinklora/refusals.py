"""Refusals told in one sentence: what a command line says where it was asked for something wrong.

Functions of sinklora raise an exception that names the argument, its value and what to do, before any work
starts. On a command line that is one sentence and exit code 2. Everything else is a fault, and keeps its
traceback.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

REFUSING = (ValueError, TypeError, FileNotFoundError, ImportError)


def is_refusal(error: Exception) -> bool:
    """Whether sinklora itself raised `error` because of what it was given.

    That is an exception class of sinklora's own, or one of REFUSING that sinklora's code raised: the same
    from a library below, in the middle of the work, is a fault.
    """
    if type(error).__module__.startswith("sinklora."):
        return True
    return isinstance(error, REFUSING) and raised_by(error, "sinklora")


def raised_by(error: Exception, package: str) -> bool:
    """Whether the last frame of an error that was raised is code of a package (or a module) of this name."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and is_within(frames[-1].f_globals.get("__name__", ""), package)


def is_within(module: str, package: str) -> bool:
    """Whether a module of that dotted name is the package (or module) itself or belongs to it."""
    return module == package or module.startswith(f"{package}.")


def told_in_a_sentence(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A command that ends with one sentence on standard error and exit code 2 where it refuses."""

    @functools.wraps(command)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        try:
            return command(*arguments, **options)
        except Exception as error:
            if not is_refusal(error):
                raise
            if trace := getattr(error, "trace", ""):
                typer.echo(trace, err=True)
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(getattr(error, "exit_code", 2)) from error

    return run
