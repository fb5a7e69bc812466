"""The commands `data longalpaca-plus` and `data mini`. Nothing heavy is imported until they run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sinklora.refusals import told_in_a_sentence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

commands = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Build data sets for supervised fine-tuning.",
)

Out = Annotated[Path, typer.Option(help="folder for the data set; files of the same names are replaced")]
Seed = Annotated[int, typer.Option(help="another seed, another choice of examples")]
Tokenizer = Annotated[
    str, typer.Option(help="model, by folder or name, whose tokens are counted; default: words alone")
]


@commands.command("longalpaca-plus")
@told_in_a_sentence
def longalpaca_plus_command(
    source: Annotated[
        list[str],
        typer.Option(help="nq=PATH, redpajama=PATH, booksum=PATH and longqa=PATH; or nq=hub:NAME, …"),
    ],
    out: Out,
    total: Annotated[int, typer.Option(help="examples; the paper has 28,000")] = 28_000,
    seed: Seed = 0,
    tokenizer: Tokenizer = "",
    most_rows: Annotated[
        int | None, typer.Option(help="read no more rows of each source; default: all")
    ] = None,
) -> None:
    """Mix LongAlpaca-plus of Natural Questions, RedPajama, BookSum and LongQA, as the paper does."""
    sources = named_sources(source)
    from sinklora.train.instructions.longalpaca_plus import build_longalpaca_plus

    counted = _tokenizer(tokenizer)
    typer.echo(
        build_longalpaca_plus(
            sources, out=out, total=total, seed=seed, tokenizer=counted, most_rows=most_rows
        )
    )


@commands.command("mini")
@told_in_a_sentence
def mini_command(
    out: Out,
    train: Annotated[int, typer.Option(help="examples to train on")] = 500,
    test: Annotated[int, typer.Option(help="examples of other documents")] = 240,
    package: Annotated[
        list[str] | None,
        typer.Option(help="installed package whose documentation is read; repeat; default: five of them"),
    ] = None,
    books: Annotated[str, typer.Option(help="folder of texts (*.txt), or a text, to be continued")] = "",
    books_licence: Annotated[str, typer.Option(help="of these texts; default: not stated")] = "",
    seed: Seed = 0,
    tokenizer: Tokenizer = "",
) -> None:
    """Make a small set of the same mix from installed documentation, without a network."""
    from sinklora.train.instructions.documentation import NOT_STATED
    from sinklora.train.instructions.mini import PACKAGES, MiniSpec
    from sinklora.train.instructions.mini_folder import build_mini

    licence = books_licence or NOT_STATED
    spec = MiniSpec(train, test, tuple(package or PACKAGES), books, seed, licence)
    typer.echo(build_mini(spec, out=out, tokenizer=_tokenizer(tokenizer)))


def named_sources(given: list[str]) -> dict[str, str]:
    """NAME=PATH, several times, as a mapping. Raises ValueError for what is no such pair, or given twice."""
    sources: dict[str, str] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise ValueError(f"source={text!r}: expected NAME=PATH, such as nq=simplified-nq-train.jsonl.gz")
        if name in sources:
            raise ValueError(f"source={text!r}: {name} is given twice; put its files into one folder")
        sources[name] = place
    return sources


def _tokenizer(name: str) -> "PreTrainedTokenizerBase | None":
    if not name:
        return None
    from transformers import AutoTokenizer

    from sinklora.hf.model_names import check_model_name
    from sinklora.pretrained.fetch import model_path

    check_model_name(name, "tokenizer")
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_path(name))
    return loaded
