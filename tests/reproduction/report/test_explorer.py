"""Pictures with sliders follow their controls, and hold no widget that makes a notebook wait for ever."""

from collections.abc import Iterator

import ipywidgets
import pytest

from moved_controls import check_controls
from sinklora.reproduction.patterns.figures import pattern_explorer
from sinklora.reproduction.report.explorer import explore


def widgets_of(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_of(child)


@pytest.fixture(scope="module")
def explorer() -> ipywidgets.VBox:
    return pattern_explorer()


def test_what_is_shown_follows_the_controls() -> None:
    number = ipywidgets.IntSlider(2, 0, 9)
    box = explore(lambda n, name: f"{name}: {n}", {"n": number, "name": ipywidgets.Text("tokens")})
    shown = box.children[-1]
    assert shown.value == "tokens: 2"
    number.value = 7
    assert shown.value == "tokens: 7"


def test_every_control_changes_the_picture(explorer: ipywidgets.VBox) -> None:
    check_controls(explorer)


def test_no_output_widget_that_makes_nbclient_wait_for_ever(explorer: ipywidgets.VBox) -> None:
    assert not [widget for widget in widgets_of(explorer) if isinstance(widget, ipywidgets.Output)]
