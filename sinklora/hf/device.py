"""Where models are evaluated."""

from typing import Any

import torch


def default_device() -> str:
    """The GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def input_device(model: Any) -> torch.device:
    """Where a transformers model takes its tokens, also one whose weights accelerate keeps elsewhere."""
    device = torch.device(model.device)
    if device.type != "meta":
        return device
    hooks = [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]
    several = [each for hook in hooks for each in getattr(hook, "hooks", [hook])]
    places = [getattr(hook, "execution_device", None) for hook in several]
    return next((torch.device(place) for place in places if place is not None), device)


def probing_device(model: Any) -> torch.device:
    """The same; ValueError for weights that cannot run."""
    device = input_device(model)
    if device.type == "meta":
        raise ValueError(
            f"the weights of {type(model).__name__} are on meta, so a look at a few tokens is not possible: "
            "load them first, or pass probe=False"
        )
    return device
