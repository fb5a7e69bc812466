"""Pictures with sliders follow their controls, and hold no widget that makes a notebook wait for ever."""

from collections.abc import Iterator

import ipywidgets
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from moved_controls import check_controls
from sinklora.cache.h2o import H2O
from sinklora.cache.sliding_window import Local
from sinklora.reproduction.cache.figures import kept_explorer
from sinklora.reproduction.patterns.figures import pattern_explorer
from sinklora.reproduction.report.explorer import explore


def widgets_of(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_of(child)


@pytest.fixture(params=["patterns", "kept"], scope="module")
def explorer(request: pytest.FixtureRequest) -> ipywidgets.VBox:
    if request.param == "patterns":
        return pattern_explorer()
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    ids = tokenizer("def add(first, second):\n    return first + second\n")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained("data/base").eval()
    return kept_explorer(model, tokenizer, ids, {"h2o": H2O(0.3), "local": Local(0.3)})


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
