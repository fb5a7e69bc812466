"""The demo from request to screen: all checks first, then the page, then the numbers."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.hf.cache_positions import trained_length
from sinklora.hf.model_names import check_model_name
from sinklora.hf.token_text import token_pieces
from sinklora.pretrained.fetch import FetchError
from sinklora.pretrained.loading import load
from sinklora.reproduction.demo.page import cut_page, page_text
from sinklora.reproduction.demo.reading import (
    check_request,
    compared_policies,
    left_out,
    read_page,
    write_on,
)
from sinklora.reproduction.demo.screen import (
    HONEST,
    PICTURE_COLUMNS,
    continuations,
    numbers_table,
    page_view,
    picture_console,
    save_picture,
)
from sinklora.reproduction.names import CACHES, EMBEDDED, model_title

EMBEDDED_SAID = (
    "The embedded base has 4.5 million parameters and was trained on Python sources, 512 tokens at a time: "
    "English is foreign to it. Give it a Python file (--text), or take --base smollm2-135m."
)


@dataclass(frozen=True)
class DemoRequest:
    """What is to be shown; ValueError or FileNotFoundError, before a model is loaded, for what cannot be."""

    budget: str = "0.2"
    policy: str = "h2o"
    text: Path | None = None
    base: str = "smollm2-135m"
    lines: int = 18
    save: Path | None = None

    def __post_init__(self) -> None:
        check_request(self.policy, self.budget)
        if self.save is None:
            return
        if self.save.suffix != ".svg":
            raise ValueError(f"save={str(self.save)!r}: expected a name that ends with .svg")
        if not self.save.parent.is_dir():
            raise FileNotFoundError(f"save={str(self.save)!r}: there is no such folder; make it first")


def show_demo(request: DemoRequest, console: Console | None = None) -> None:
    """Read a page through the full cache and bounded ones, and show what is kept, what it costs and saves.

    Raises FetchError where the model cannot be had.
    """
    console = console or Console()
    text = page_text(request.text)
    model, tokenizer = _loaded(request.base, console)
    page = cut_page(token_pieces(tokenizer, text), trained_length(model.config))
    budget = check_request(request.policy, request.budget)
    chosen, *others = compared_policies(request.policy, budget, len(page.prompt))
    said = [Text(f"{model_title(request.base)} reads {len(page.prompt)} tokens.", style="bold")]
    if model_title(request.base) == EMBEDDED:
        said.append(Text(EMBEDDED_SAID))
    if missing := [CACHES.get(name, name) for name in left_out(budget)]:
        said.append(Text(f"Left out: {' and '.join(missing)}, for which budget={budget} is too small."))
    console.print(*said, sep="\n")

    with console.status("reading the page; the first time a kernel is compiled for this"):
        reading = read_page(model, page, chosen)
    console.print(page_view(console, page, reading, request.lines))
    with console.status("reading on through the other caches"):
        full, *rest = (read_page(model, page, policy) for policy in (None, *others))
    readings = [full, reading, *rest]
    # Last, when all that is done once in a process is done.
    with console.status("reading and writing once more, timed"):
        written = [write_on(model, page, policy) for policy in (None, chosen)]
    texts = [str(tokenizer.decode(one.written[0], skip_special_tokens=True)) for one in written]
    views: list[RenderableType] = [continuations(readings, texts), numbers_table(page, readings, written)]
    views.append(Text(HONEST, style="italic"))
    console.print(*views, sep="\n")
    if request.save is not None:
        picture = picture_console()
        above: list[RenderableType] = [*said, page_view(picture, page, reading, request.lines)]
        save_picture(request.save, "sinklora demo", [*above, *views], PICTURE_COLUMNS)


def _loaded(base: str, console: Console) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        with console.status(f"loading {model_title(base)}"):
            check_model_name(base, "base")
            model, tokenizer = load(base)
    except FetchError as error:
        raise FetchError(
            f"{error}; in a clone, --base data/base shows the demo on a model that is there"
        ) from error
    return model, tokenizer
