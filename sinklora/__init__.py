"""sinklora: SF-Attn fine-tuning and H2O inference for long-context language models, on stock libraries.

The public names stand in `__init__.pyi`, each with the module that defines it, and are loaded when first
used, so that importing this package, or the parts that need PyTorch alone, stays quick. `import sinklora.hf`
also registers the attention that saved models with a pattern ask for.
"""

import ast
import importlib
from pathlib import Path
from typing import Any


def _public_names() -> dict[str, str]:
    """Each public name and the module that defines it, as the type stub beside this file lists them."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_HOMES = _public_names()

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """A public name, from where it is defined (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sinklora' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
