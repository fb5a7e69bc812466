"""The command `train`. Nothing heavy is imported until it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinklora.refusals import told_in_a_sentence

if TYPE_CHECKING:
    from sinklora.train.instruction_spec import InstructionSpec
    from sinklora.train.spec import TrainSpec


@told_in_a_sentence
def train_command(
    config: Annotated[Path, typer.Option(help="YAML file with the fields of TrainSpec or InstructionSpec")],
    runs: Annotated[Path, typer.Option(help="where run directories lie")] = Path("runs"),
    wait: Annotated[bool, typer.Option(help="wait where another process trains the same")] = True,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Train one specification; a killed run goes on from its last checkpoint, a finished one is reused.

    On several devices: torchrun --nproc_per_node=2 -m sinklora.train --config FILE
    """
    del local_rank  # DeepSpeed's launcher says it twice: what counts stands in the environment
    spec = read_spec(config)
    from sinklora.train.run import train

    typer.echo(train(spec, runs=runs, wait=wait).path)


def read_spec(config: Path) -> "TrainSpec | InstructionSpec":
    """The spec of a YAML file: an InstructionSpec where it has `examples`, else a TrainSpec.

    Raises FileNotFoundError, or ValueError with the file's name for what is no YAML or no spec.
    """
    from sinklora.records.yaml_files import read_mapping
    from sinklora.train.instruction_spec import InstructionSpec
    from sinklora.train.spec import TrainSpec

    if not config.is_file():
        raise FileNotFoundError(f"config={str(config)!r}: no such file; configs/train has some to start from")
    values = read_mapping(config, "base: and steps:")
    kind = InstructionSpec if "examples" in values else TrainSpec
    try:
        return kind.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config}: {error}") from error
