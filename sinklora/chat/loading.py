"""The model of a conversation: by name, with an adapter and a chat template where they are given."""

from __future__ import annotations

from pathlib import Path

from sinklora.hf.model_names import adapter_folder, check_model_name
from sinklora.lora.adapter import merge_adapter
from sinklora.lora.checkpoint import load_adapter
from sinklora.pretrained.loading import LoadedModel, load
from sinklora.train.chat_templates import TEMPLATE_FILE, template_text
from sinklora.train.conversations import ConversationTemplate


def chat_model(base: str, adapter: str | None = None, template: str | None = None) -> LoadedModel:
    """Model and tokenizer; the adapter merged into the model.

    `template`: one of TEMPLATE_NAMES; else the one that the adapter was tuned with, else the tokenizer's own.
    Raises ValueError naming the argument where there is no such model, adapter or template, and for a
    template that the tokenizer lacks the special tokens of.
    """
    check_model_name(base, "base")
    written = None if template is None else template_text(template)
    folder = None if adapter is None else adapter_folder(adapter, "adapter")
    model, tokenizer = load(base)
    if folder is not None:
        model = merge_adapter(load_adapter(model, folder)).eval()
        written = written or _template_of(folder)
    if template is not None:
        ConversationTemplate(tokenizer, template)  # refuses one whose tokens the tokenizer lacks
    if written:
        tokenizer.chat_template = written
    return LoadedModel(model, tokenizer)


def _template_of(folder: Path) -> str | None:
    path = folder / TEMPLATE_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else None
