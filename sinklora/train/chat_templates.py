"""Chat templates that we bring, for models that have none of their own."""

from pathlib import Path

FOLDER = Path(__file__).parent / "templates"

TEMPLATE_FILE = "chat_template.jinja"  # in an adapter's folder: what it was tuned with

TEMPLATE_NAMES = ("llama-2", "llama-3", "chatml")


def template_text(name: str) -> str:
    """The template of a name, in jinja; ValueError for other names than TEMPLATE_NAMES."""
    if name not in TEMPLATE_NAMES:
        raise ValueError(f"template={name!r}: expected one of {', '.join(TEMPLATE_NAMES)}, or None")
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
