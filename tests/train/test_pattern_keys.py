"""Runs stay found: their keys hold the field names of the first runs, whatever names are typed today."""

from types import SimpleNamespace

import pytest

from sinklora.records.files import json_hash
from sinklora.train.spec import TrainSpec, identity

# Hashes that the first version computed, for a corpus whose SHA-256 is 64 zeros.
FIRST = {
    "sf": "af698e1a15fd9e84040f6999b522e1ecf9f57cb435194314bd6eb39df46a415e",
    "sf(shifted=0.25)": "c387505dcf3e5b8266aecce8f0bbf5a8fdefad76aebaf14f80cddb1834f74076",
    "sf_then_full": "dbd8967576a0e4a52ee248b5aa61dd4ff423cb739e876911b56dd367c112ab71",
    "sf_growing": "3e038f09819d2099a618484efd5ef2992f988e2e2ca83e5258398c797c11f021",
}
OTHERS = {
    "sf": {},
    "sf(shifted=0.25)": {"lr_schedule": "cosine", "recall_share": 0.25},
    "sf_then_full": {},
    "sf_growing": {"steps": 10},
}


def key(pattern: str, **others: object) -> str:
    spec = TrainSpec.from_dict({"base": "gpt2", "pattern": pattern, **others})
    return json_hash(identity(spec, SimpleNamespace(sha256="0" * 64)))  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", FIRST)
def test_keys_are_those_of_the_first_runs(pattern: str) -> None:
    assert key(pattern, **OTHERS[pattern]) == FIRST[pattern]


def test_present_names_have_the_same_key() -> None:
    named = "sf(shifted_fraction=0.25)"
    assert key(named, **OTHERS["sf(shifted=0.25)"]) == FIRST["sf(shifted=0.25)"]


def test_what_is_keyed_is_what_is_trained() -> None:
    one, other = (TrainSpec(pattern=f"sf({name}=0.25)") for name in ("shifted", "shifted_fraction"))
    assert one.attention_pattern() == other.attention_pattern()
    assert key("sf(shifted_fraction=0.5)") != key("sf(shifted_fraction=0.25)")
