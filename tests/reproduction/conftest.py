"""Figures are closed after the test that drew them."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Pyplot keeps every figure until it is closed."""
    yield
    plt.close("all")
