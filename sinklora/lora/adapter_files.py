"""What lies in an adapter's folder beside peft's files: `sinklora.json`, and a note for peft's own loaders.

`sinklora.json` remembers RoPE, pattern, base model and adapters; it is written last, with the hashes of the
weights that it belongs to.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel

from sinklora.hf.models import current_pattern, evaluates_with_pattern
from sinklora.hf.rope import find_transformer, rope_state
from sinklora.lora.base_model import BASE_KEYS, describe_base, last_rows
from sinklora.lora.plain_peft import lost_with_peft
from sinklora.records.files import atomic_write, file_hash

STATE_FILE = "sinklora.json"

CONFIG_FILE = "adapter_config.json"

WEIGHTS_FILE = "adapter_model.safetensors"

FORMAT = 1

NOTE = "sinklora.load_adapter restores what peft alone loses"  # begins the key of the note


@dataclass(frozen=True)
class AdapterState:
    """The content of `sinklora.json`; older files lack the last four. `weights`: SHA-256 by file."""

    base: dict[str, Any]
    rope: dict[str, Any]
    pattern: dict[str, Any] | None
    evaluate_with_pattern: bool
    adapters: list[str] = field(default_factory=lambda: ["default"])
    active: list[str] = field(default_factory=lambda: ["default"])
    weights: dict[str, str] = field(default_factory=dict)
    last_rows: dict[str, list[float]] = field(default_factory=dict)


def adapter_folder(folder: Path, name: str) -> Path:
    """Where peft puts the adapter `name`: "default" in the folder itself, others below it."""
    return folder if name == "default" else folder / name


def complete_folder(model: PeftModel, folder: Path, names: list[str] | None = None) -> None:
    """Add to the files that peft wrote for the adapters `names` (all): the note, and `sinklora.json` last."""
    names = list(model.peft_config) if names is None else names
    pattern = current_pattern(model)
    lost = lost_with_peft(model)
    weights: dict[str, str] = {}
    for name in names:
        below = adapter_folder(folder, name)
        _write_note(below / CONFIG_FILE, lost)
        for file in sorted(below.glob("adapter_model.*")):
            weights[file.relative_to(folder).as_posix()] = file_hash(file)
    state = AdapterState(
        base=describe_base(find_transformer(model)),
        rope=rope_state(model),
        pattern=None if pattern is None else pattern.to_dict(),
        evaluate_with_pattern=evaluates_with_pattern(model),
        adapters=names,
        active=[name for name in model.active_adapters if name in names],
        weights=weights,
        last_rows=last_rows(model),
    )
    atomic_write(folder / STATE_FILE, json.dumps({"format": FORMAT, **asdict(state)}, indent=2) + "\n")


def read_state(folder: Path) -> AdapterState:
    """The content of `sinklora.json`; ValueError: it is missing, damaged or of another format."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is not a complete adapter of sinklora: {_reason(folder)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(values).__name__}, expected an object")
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is of another format than {FORMAT}, which this version reads")
    try:
        state = AdapterState(**values)
    except TypeError as error:
        raise ValueError(f"{path} is damaged, or of a later version: {error}") from error
    if wrong := [name for name in state.adapters if not is_plain_name(name)]:
        raise ValueError(f"{path} names an adapter {wrong[0]!r}, which cannot name a folder")
    return state


def is_plain_name(name: str) -> bool:
    """Whether an adapter's name can be that of its folder, inside of the one it is saved to."""
    return Path(name).name == name and name != ".."


def check_files(state: AdapterState, folder: Path) -> None:
    """ValueError naming the first file of an adapter that is missing or not the one that was saved."""
    for name in state.adapters:
        below = adapter_folder(folder, name)
        missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (below / file).is_file()]
        if missing:
            raise ValueError(f"{below} is not a complete adapter of sinklora: {', '.join(missing)} missing")
    for file, digest in state.weights.items():
        if not (folder / file).is_file() or file_hash(folder / file) != digest:
            raise ValueError(
                f"{folder / file} is not the file that {STATE_FILE} was written for: it is damaged, or other "
                "weights were saved over it"
            )


def read_config(folder: Path) -> LoraConfig:
    """peft's config of an adapter without our note; ValueError: it is of another kind than LoRA."""
    fields = PeftConfig.from_json_file(str(folder / CONFIG_FILE))
    fields = {name: value for name, value in fields.items() if not name.startswith(NOTE)}
    config = PeftConfig.from_peft_type(**fields)
    check_lora(config, str(folder))
    return config


def check_lora(config: PeftConfig, source: str) -> None:
    """ValueError for adapters of other kinds (prefix tuning, IA3, ...), which LoRA+ does not know."""
    if not isinstance(config, LoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ValueError(f"{source} holds an adapter of type {kind}, expected LoRA: use peft itself")


def check_base(state: AdapterState, base: dict[str, Any], folder: Path) -> None:
    """ValueError with every size in which `base` differs from the saved adapter's base model."""
    different = [
        f"{key}={state.base[key]!r} there, {base[key]!r} here"
        for key in BASE_KEYS
        if state.base[key] != base[key]
    ]
    if different:
        raise ValueError(f"the adapter in {folder} belongs to another base model: {'; '.join(different)}")


def _write_note(config_file: Path, lost: list[str]) -> None:
    # peft warns of keys that it does not know, naming them: so this one is read by those whom it concerns.
    if lost:
        fields = json.loads(config_file.read_text(encoding="utf-8"))
        fields[f"{NOTE}: {', '.join(lost)}"] = True
        atomic_write(config_file, json.dumps(fields, indent=2, sort_keys=True))


def _reason(folder: Path) -> str:
    if (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file():
        return (
            f"{STATE_FILE} missing. peft alone wrote it, and nothing tells positions and pattern: call "
            "extend_context as in training, then peft.PeftModel.from_pretrained"
        )
    missing = [file for file in (STATE_FILE, CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    return f"{', '.join(missing)} missing (for LongLoRA's two-file format use import_longlora)"
