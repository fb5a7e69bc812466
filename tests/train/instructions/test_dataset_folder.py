"""Where a set of examples is written: refused before any work where it cannot be."""

from pathlib import Path

import pytest

from sinklora.train.instructions.dataset_folder import check_out
from sinklora.train.instructions.longalpaca_plus import build_longalpaca_plus
from sinklora.train.instructions.mini import MiniSpec
from sinklora.train.instructions.mini_folder import build_mini


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for out in (taken, taken / "below"):
        with pytest.raises(ValueError, match="taken is a file; give a folder"):
            build_longalpaca_plus({"nq": "nowhere"}, out=out)
        with pytest.raises(ValueError, match="taken is a file; give a folder"):
            build_mini(MiniSpec(40, 20, ("no_such_package",)), out=out)
    assert taken.read_text() == "mine"


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_out(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists(), "nothing is made yet"
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot be written; give another folder"):
        check_out(tmp_path / "new")
