"""The sessions of noxfile.py: what they install."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None and spec.loader is not None
    noxfile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(noxfile)
    return noxfile


def test_the_oldest_versions_are_the_lower_bounds(noxfile: ModuleType) -> None:
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert noxfile.requirements("newest") == given
    changed = set(noxfile.requirements("oldest")) - set(given)
    assert sorted(re.sub(r"[\d.]+$", "", line) for line in changed) == ["torch==", "transformers=="]
    assert all(line.count(".") == 2 for line in changed)


@pytest.mark.parametrize("given", ["some>=5", "some>=5.0", "some>=5.0.0"])
def test_a_bound_is_a_release(given: str, noxfile: ModuleType) -> None:
    assert noxfile.at_lower_bound(given) == "some==5.0.0"
