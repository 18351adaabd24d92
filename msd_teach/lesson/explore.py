"""Figures that the reader moves: canvases that do their own arithmetic, and sliders with a live and a printed face."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .canvases import distillation_canvas, mean_shift_canvas
from .replay import replay_canvas
from .web import Page, assemble

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Live", "distillation_canvas", "explore", "mean_shift_canvas", "replay_canvas"]

FRAMES = 64  # the most pictures that one printed `explore` may hold


def explore(
    fn: Callable[..., Figure], *, alt: str, default: dict[str, Any] | None = None, **values: Iterable[Any]
) -> Page | Live:
    """Sliders over `fn(**choice)`, a function that returns a matplotlib figure: `explore(fn, alt="…", t=range(5))`.

    Each keyword gives the values of one slider; `default` names where they open (the first values otherwise). With a
    kernel the result is an ipywidget that calls `fn` on every move. With MSD_TEACH_STATIC=1, or without ipywidgets, it
    holds one WebP frame for each combination, so their number is limited to 64.

    Raises:
        ValueError: no alt text, no values, too many combinations, a default that is none of the values.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"alt is {alt!r}; it must describe the figure in at least 20 characters")
    choices = {name: list(options) for name, options in values.items()}
    if not choices or not all(choices.values()):
        raise ValueError(f"values are {choices}; give at least one keyword, each with at least one value")
    sizes = {name: len(options) for name, options in choices.items()}
    if (count := math.prod(sizes.values())) > FRAMES:
        raise ValueError(f"values have {count} combinations, {sizes}; at most {FRAMES} fit into a page")
    start = {name: options[0] for name, options in choices.items()} | (default or {})
    for name, value in start.items():
        if value not in choices.get(name, []):
            allowed = f"one of {choices[name]}" if name in choices else f"of one of the keywords {sorted(choices)}"
            raise ValueError(f"default has {name}={value!r}; it must be {allowed}")
    if os.environ.get("MSD_TEACH_STATIC") == "1" or importlib.util.find_spec("ipywidgets") is None:
        return _printed(fn, alt, start, choices)
    return Live(fn, alt, start, choices)


class Live:
    """The live face of `explore`: a `.widget` that redraws the figure, and a picture of the opening state.

    Where `fn` fails, the widget shows no figure but the values and the error.
    """

    def __init__(self, fn: Callable[..., Figure], alt: str, start: dict[str, Any], choices: dict[str, list[Any]]):
        import ipywidgets

        sliders = {
            name: ipywidgets.SelectionSlider(
                options=[(_say(v), v) for v in options],
                index=options.index(start[name]),
                description=name,
            )
            for name, options in choices.items()
        }
        self._png, self._alt = _png(_draw(fn, start)), alt
        picture = ipywidgets.HTML(_img(self._png, alt))

        def redraw(_change: object) -> None:
            chosen = {name: choices[name][slider.index] for name, slider in sliders.items()}
            try:
                picture.value = _img(_png(_draw(fn, chosen)), alt)
            except Exception as error:
                said = html.escape(f"No figure {_at(chosen)}: {type(error).__name__}: {error}")
                picture.value = f'<p role="alert">{said}</p>'
                raise  # into the kernel's log

        for slider in sliders.values():
            slider.observe(redraw, "index")
        self.widget = ipywidgets.VBox([*sliders.values(), picture])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = dict(self.widget._repr_mimebundle_() or {})
        data |= {"image/png": base64.b64encode(self._png).decode(), "text/plain": self._alt}
        return data, {"image/png": {"alt": self._alt}}


def _printed(fn: Callable[..., Figure], alt: str, start: dict[str, Any], choices: dict[str, list[Any]]) -> Page:
    """The printed face of `explore`: a frame for each combination, the last keyword running fastest."""
    combinations = itertools.product(*choices.values())
    frames = [_webp(_draw(fn, dict(zip(choices, values, strict=True)))) for values in combinations]
    sliders = [
        {"name": name, "values": [_say(v) for v in options], "start": options.index(start[name])}
        for name, options in choices.items()
    ]
    data = {"sliders": sliders, "frames": [base64.b64encode(frame).decode() for frame in frames], "alt": alt}
    return Page(assemble("frames", data), _png(_draw(fn, start)), alt)


def _draw(fn: Callable[..., Figure], chosen: dict[str, Any]) -> Figure:
    """The figure of one choice; where there is none, the error names the choice and no half-drawn figure stays open."""
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    before = plt.get_fignums()
    try:
        figure = fn(**chosen)
        if not isinstance(figure, Figure):
            raise ValueError(f"fn returned {type(figure).__name__}; it must return a matplotlib figure")
        return figure
    except Exception as error:
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)
        error.add_note(f"drawing the figure {_at(chosen)}")
        raise


def _at(chosen: dict[str, Any]) -> str:
    return "at " + ", ".join(f"{name} = {_say(value)}" for name, value in chosen.items())


def _png(figure: Figure) -> bytes:
    from .figures import png

    return png(figure)


def _webp(figure: Figure) -> bytes:
    """A frame, without metadata that would differ between two runs; the figure is closed."""
    import matplotlib.pyplot as plt

    from .figures import stamp

    stamp(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=130, pil_kwargs={"quality": 82, "method": 6})
    plt.close(figure)
    return buffer.getvalue()


def _img(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _say(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
