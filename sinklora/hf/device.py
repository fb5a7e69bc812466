"""Where models are evaluated."""

import torch
from transformers import PreTrainedModel


def default_device() -> str:
    """The GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its tokens, also where accelerate keeps its weights elsewhere between calls."""
    if model.device.type != "meta":
        return model.device
    hooks = [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]
    several = [each for hook in hooks for each in getattr(hook, "hooks", [hook])]
    devices = [getattr(hook, "execution_device", None) for hook in several]
    return next((torch.device(device) for device in devices if device is not None), model.device)


def probing_device(model: PreTrainedModel) -> torch.device:
    """The same; ValueError for weights that cannot run."""
    device = input_device(model)
    if device.type == "meta":
        raise ValueError(
            f"the weights of {type(model).__name__} are on meta, so a look at a few tokens is not possible: "
            "load them first, or pass probe=False"
        )
    return device
