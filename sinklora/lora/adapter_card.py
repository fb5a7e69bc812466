"""The README.md of an adapter's folder: what it holds, what it needs, how to open it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from peft import LoraConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from sinklora.hf.models import current_pattern
from sinklora.hf.rope import ROPE_KEYS, find_transformer, rope_state
from sinklora.lora.base_model import describe_base
from sinklora.lora.plain_peft import describe_rope, has_other_positions, lost_with_peft
from sinklora.lora.trained_modules import is_norm
from sinklora.pretrained.catalogue import PackagedModel
from sinklora.pretrained.fetch import packaged_in
from sinklora.records.files import atomic_write

CARD_FILE = "README.md"

MARK = "<!-- Written by sinklora at every save; remove this line to keep a text of your own. -->"

TEMPLATE = "[More Information Needed]"  # in peft's own card

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def write_model_card(model: PeftModel, folder: Path) -> None:
    """Write the card of `model` to `folder`, unless a person's own text is there."""
    path = folder / CARD_FILE
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if MARK not in text and TEMPLATE not in text:
            return
    atomic_write(path, model_card(model))


def model_card(model: PeftModel) -> str:
    """The card of `model`: Markdown with the metadata that the hub reads."""
    name = _base_name(model)
    packaged = packaged_in(_loaded_from(model))
    metadata = ModelCardData(
        base_model=name,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "long-context", "sinklora"],
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---\n{MARK}",
        f"# LoRA+ adapter of {packaged.title if packaged else name or 'a local model'}",
        "Made with sinklora, after LongLoRA (arXiv 2309.12307): LoRA on the attention projections, and some "
        "layers trained in full.",
        _contents(model),
        _opening(model, name or "path/of/the/base/model", packaged),
    ]
    return "\n\n".join(sections) + "\n"


def _contents(model: PeftModel) -> str:
    sizes = ", ".join(f"{key} {value}" for key, value in describe_base(find_transformer(model)).items())
    rope, pattern = rope_state(model), current_pattern(model)
    lines = ["## What it holds", "", f"- Base model: {sizes}."]
    for adapter, config in model.peft_config.items():
        if isinstance(config, LoraConfig):
            lines.append(f"- Adapter `{adapter}`: {_adapter_line(model, adapter, config)}.")
    if rope:
        lines.append(f"- Positions (RoPE): {describe_rope(rope)}.")
    attention = "full attention" if pattern is None else f"the pattern `{pattern.to_dict()}`"
    lines.append(f"- Attention while training: {attention}. Evaluation uses full attention unless asked.")
    return "\n".join(lines)


def _adapter_line(model: PeftModel, adapter: str, config: LoraConfig) -> str:
    projections = sum(name.endswith(f".lora_A.{adapter}") for name, _ in model.named_modules())
    whole = [
        module.modules_to_save[adapter]
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save
    ]
    norms = sum(is_norm(layer) for layer in whole)
    tables = len({layer.weight for layer in whole if not is_norm(layer)})  # tied ones are one
    return (
        f"LoRA of rank {config.r}, alpha {config.lora_alpha} on {projections} projections; trained in full: "
        f"{norms} normalization layers, {tables} embedding or output layers"
    )


def _opening(model: PeftModel, name: str, packaged: PackagedModel | None) -> str:
    base = [
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{name}")',
    ]
    if packaged:
        base = ["", f'base = sinklora.load("{packaged.name}").model']
    lines = [
        "## How to open it",
        "",
        "```python",
        "import sinklora",
        *base,
        'model = sinklora.load_adapter(base, "path/of/this/folder")',
        "```",
        "",
        "`sinklora.merge_adapter(model)` makes a plain transformers model of it.",
    ]
    lost = lost_with_peft(model)
    if not lost:
        without = "peft alone opens it too, without a pattern, and in half precision with rounded norms."
        return "\n".join([*lines, "", without])
    lines += ["", f"peft alone (`PeftModel`, `AutoPeftModelForCausalLM`) loses {', '.join(lost)}."]
    return "\n".join(lines + (_peft_alone(model, name) if has_other_positions(model) else []))


def _peft_alone(model: nn.Module, name: str) -> list[str]:
    rope: dict[str, Any] = rope_state(model)
    settings = [f"config.{key} = {rope[key]!r}" for key in ROPE_KEYS if key in rope]
    return [
        "Without sinklora, give the base model its positions first:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoConfig, AutoModelForCausalLM",
        "",
        f'config = AutoConfig.from_pretrained("{name}")',
        *settings,
        f'base = AutoModelForCausalLM.from_pretrained("{name}", config=config)',
        'model = PeftModel.from_pretrained(base, "path/of/this/folder")',
        "```",
    ]


def _base_name(model: PeftModel) -> str | None:
    """The base model's name on the hub; None for one from a folder or from nowhere."""
    name = _loaded_from(model)
    return name if HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _loaded_from(model: PeftModel) -> str:
    """The name or folder that the base model was loaded from; "" for one from nowhere."""
    return getattr(find_transformer(model), "name_or_path", "") or ""
