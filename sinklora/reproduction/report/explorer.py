"""Pictures that a reader changes by sliders and lists (needs a running notebook)."""

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure


def explore(render: Callable[..., str], controls: "dict[str, ipywidgets.Widget]") -> "ipywidgets.VBox":
    """Controls above the HTML that `render` makes of their values (by name), made anew at each change.

    Not `ipywidgets.interactive`: its Output widget makes nbclient (papermill, nbconvert) write to the channel
    that it waits on, and now and then it waits for ever (nbclient issue 312).
    """
    import ipywidgets

    shown = ipywidgets.HTML()

    def redraw(_change: Any = None) -> None:
        shown.value = render(**{name: control.value for name, control in controls.items()})

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*controls.values(), shown])


def figure_html(figure: "Figure") -> str:
    """A figure as an image that HTML holds in itself; the figure is closed."""
    import matplotlib.pyplot as plt

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    plt.close(figure)
    return f'<img src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'
