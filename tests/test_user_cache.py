"""Where what was fetched, tokenized and compiled is kept: one folder, which the environment may name."""

from pathlib import Path

import pytest

from sinklora.cache.column_sums_cpu import COLUMN_SUMS
from sinklora.pretrained.fetch import models_folder
from sinklora.train.tokens import default_cache

PARTS = ["kernels", "models", "tokens"]


def folders() -> list[Path]:
    return [COLUMN_SUMS.library_path().parents[1], models_folder(), default_cache()]


@pytest.mark.parametrize(
    ("value", "folder"),
    [("~/here", "~/here"), ("/else/where", "/else/where"), ("", "~/.cache/sinklora")],
    ids=["home", "absolute", "empty"],
)
def test_the_environment_names_the_folder(value: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINKLORA_CACHE", value)
    assert folders() == [Path(folder).expanduser() / part for part in PARTS]


def test_it_lies_at_home_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SINKLORA_CACHE", raising=False)
    assert folders() == [Path.home() / ".cache" / "sinklora" / part for part in PARTS]
