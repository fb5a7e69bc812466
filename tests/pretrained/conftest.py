"""The real model that tests run on, fetched once."""

import pytest

from sinklora.pretrained.fetch import model_path


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name of SmolLM2-135M-Instruct, which lies where models are kept (93 MB are downloaded if not)."""
    model_path("smollm2-135m")
    return "smollm2-135m"
