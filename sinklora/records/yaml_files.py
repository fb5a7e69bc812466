"""Files of YAML that hold keys and values: what is none of them is told with the file's name."""

from pathlib import Path
from typing import Any

import yaml


def read_mapping(path: Path, such_as: str) -> dict[str, Any]:
    """The keys and values of a file; `such_as`: some of the keys, for who wrote something else.

    Raises FileNotFoundError, or ValueError with the file's name for what is no YAML and for what has no keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values, such as {such_as}, not {values!r:.80}")
    return values
