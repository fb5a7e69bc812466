"""What a benchmark reads from its command line."""

from collections.abc import Sequence
from typing import Any, TypeVar

from script_options import script
from typer.main import get_command

Options = TypeVar("Options")


def options_read(kind: type[Options], arguments: Sequence[str]) -> Options:
    """The options of a kind that these arguments ask for; a GPU is not needed."""
    read: list[Any] = []

    def keep(options: Options) -> None:
        read.append(options)

    without_gpu = ["cpu" if argument == "cuda" else argument for argument in arguments]
    get_command(script(keep, kind)).main(without_gpu, standalone_mode=False)
    [options] = read
    return options
