"""Files that a text of docs shows whole, as modules of their own."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]

EXTENDING = ROOT / "docs" / "extending.md"

BLOCK = re.compile(
    r"^```python\n# (?P<name>sinklora/[\w/]+\.py)\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL
)


def files_in(text: Path) -> dict[str, str]:
    """Source by name: of the blocks that begin with the name of a file."""
    found = BLOCK.finditer(text.read_text(encoding="utf-8"))
    return {block["name"]: block["source"] for block in found}


def module_in_text(name: str, folder: Path, patch: pytest.MonkeyPatch) -> ModuleType:
    """The file that `docs/extending.md` shows as `name`, imported from `folder` as long as `patch` lasts."""
    path = folder / Path(name).name
    path.write_text(files_in(EXTENDING)[name], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, path.stem, module)  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module
