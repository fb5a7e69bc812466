"""Where what was fetched, tokenized and compiled is kept for all of a user's work."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """The folder `part` in `$SINKLORA_CACHE`, else in `~/.cache/sinklora`; an empty name counts as none."""
    return Path(os.environ.get("SINKLORA_CACHE") or "~/.cache/sinklora").expanduser() / part
