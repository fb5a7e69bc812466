"""The commands `longbench predict` and `longbench score`. Nothing heavy is imported until they run."""

from pathlib import Path
from typing import Annotated

import typer

from sinklora.refusals import told_in_a_sentence

commands = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Predict and score LongBench, under any cache.",
)


@commands.command("score")
@told_in_a_sentence
def score_command(
    folder: Annotated[Path, typer.Argument(help="folder of files <data set>.jsonl: pred, answers, …")],
) -> None:
    """Score a folder of prediction files and print two tables: the data sets, and the category averages."""
    from sinklora.evaluate.longbench.metrics import category_table, score_folder
    from sinklora.records.tables import markdown

    scores = score_folder(folder)
    table = category_table(dict(zip(scores["dataset"], scores["score"], strict=True)))
    typer.echo(markdown(scores.round(2)))
    typer.echo("\n" + markdown(table.round(2)))


@commands.command("predict")
@told_in_a_sentence
def predict_command(
    model: Annotated[str, typer.Option(help="folder, packaged model or hub name of a causal language model")],
    data: Annotated[str, typer.Option(help="folder of files <data set>.jsonl, or a data set of the hub")],
    out: Annotated[Path, typer.Option(help="folder for the prediction files of this model and settings")],
    max_length: Annotated[int, typer.Option(help="tokens of prompt; leave room for up to 512 more")],
    kv: Annotated[
        str,
        typer.Option(
            help="cache policy: full, h2o, local, streaming, tova, snapkv, expected_attention, "
            "novelty, replay, …; a wrong one lists all"
        ),
    ] = "full",
    budget: Annotated[
        str, typer.Option(help="of the cache: a share of the prompt (0.2 or 20%) or tokens (512)")
    ] = "",
    dataset: Annotated[list[str] | None, typer.Option(help="which; repeat for more; default: all")] = None,
    limit: Annotated[int | None, typer.Option(help="records of each data set; default: all")] = None,
    chat: Annotated[bool, typer.Option(help="put prompts into the model's chat template")] = False,
) -> None:
    """Write greedy predictions, one file per data set; run it again after a kill and it goes on."""
    from sinklora.evaluate.longbench.prediction_run import PredictionRun

    PredictionRun(model, data, out, max_length, kv, budget, dataset, limit, chat).write()
