"""Widgets moved as a reader moves them."""

import ipywidgets
import matplotlib.pyplot as plt


def check_controls(widget: ipywidgets.VBox) -> None:
    """Every control changes what stands below it, and set back brings it back; no figure is left open."""
    *controls, shown = widget.children
    for control in controls:
        before, value = shown.value, control.value
        control.value = control.options[-1] if hasattr(control, "options") else control.max
        assert shown.value != before
        control.value = value
        assert shown.value == before
    assert not plt.get_fignums()
