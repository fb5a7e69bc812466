"""The pages of the reference, as texts that mkdocstrings fills from docstrings and signatures."""

import ast
from collections.abc import Iterator
from pathlib import Path

from site_pages import PACKAGE

PUBLIC = (
    "# Public names\n\nWhat `import sinklora` gives, and what stays as it is between versions "
    "([versions](../CONTRIBUTING.md#versions)).\n"
)


LATER = "---\nsearch:\n  boost: 0.3\n---\n\n"  # what was written for readers is found first


def reference_pages(root: Path) -> dict[str, str]:
    """Place and text of every page: the public names, and each room of the package."""
    package = root / PACKAGE
    rooms = sorted(path.parent.name for path in package.glob("*/__init__.py"))
    pages = {f"reference/{room}.md": LATER + room_text(package, room) for room in rooms}
    return {f"reference/{PACKAGE}.md": public_text(package), **pages}


def public_names(package: Path) -> list[str]:
    """The public names, in the order in which the package's type stub lists them."""
    stub = ast.parse((package / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in imports for alias in node.names]
    return [name for name in names if not name.startswith("__")]


def public_text(package: Path) -> str:
    """Every public name."""
    blocks = [_block(f"{PACKAGE}.{name}", toc_label=name) for name in public_names(package)]
    return "\n".join([PUBLIC, *blocks])


def room_text(package: Path, room: str) -> str:
    """Every module of a room, in alphabetical order, below what the room says of itself."""
    parts = [f"# `{PACKAGE}.{room}`\n", _purpose(package / room / "__init__.py")]
    for path in modules(package / room):
        dotted = ".".join((PACKAGE, *path.relative_to(package).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        parts.append(_block(dotted, toc_label=dotted.removeprefix(f"{PACKAGE}.{room}.")))
    return "\n".join(parts)


def modules(room: Path) -> Iterator[Path]:
    """The modules of a room and of the rooms inside it; of those without code, none."""
    for path in sorted(room.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path != room / "__init__.py" and path.name != "__main__.py" and len(tree.body) > 1:
            yield path


def _purpose(path: Path) -> str:
    return f"{ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''}\n"


def _block(name: str, **options: str) -> str:
    lines = [f"        {key}: {value!r}" for key, value in options.items()]
    return "\n".join([f"::: {name}", "    options:", *lines, ""])
