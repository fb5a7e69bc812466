"""Chat templates that we bring, for models that have none of their own."""

from pathlib import Path
from typing import Annotated

from sinklora.records.checks import check_value, one_of

FOLDER = Path(__file__).parent / "templates"

TEMPLATE_FILE = "chat_template.jinja"  # in an adapter's folder: what it was tuned with

TEMPLATE_NAMES = ("llama-2", "llama-3", "chatml")


def template_text(name: str) -> str:
    """The template of a name, in jinja; ValueError for other names than TEMPLATE_NAMES."""
    check_value("template", name, Annotated[str, one_of(TEMPLATE_NAMES)] | None)
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
