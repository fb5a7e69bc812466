"""Shapes with few layers, of which training steps are estimated and measured."""

from pathlib import Path

from transformers import LlamaConfig

from sinklora.hf.model_shapes import SHAPES


def model_folder(folder: Path, shape: str = "base", layers: int = 1, **changes: object) -> str:
    """A folder that gives a shape with few layers: what a step takes of each is the same (tested below)."""
    sizes = {**SHAPES[shape], "num_hidden_layers": layers, "use_cache": False, **changes}
    LlamaConfig(**sizes).save_pretrained(folder)  # type: ignore[arg-type]
    return str(folder)
