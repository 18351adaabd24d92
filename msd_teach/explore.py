"""Figures that the reader moves: canvases that do their own arithmetic, and sliders with a live and a printed face."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .mixture import GaussianMixture
from .web import Page, assemble

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITS = 6  # significant digits of a mixture's numbers in a page: far below a pixel
FRAMES = 64  # the most pictures that one printed `explore` may hold


def mean_shift_canvas(mixture: GaussianMixture, bandwidth: float = 0.2, climbers: int = 12) -> Page:
    """A canvas on which the reader drops points that climb p_λ by mean shift, and drags λ.

    `mixture` is two-dimensional; its numbers go into the page with 6 significant digits. `bandwidth` is the λ at which
    the canvas opens (a standard deviation), with `climbers` points that have already climbed.

    Raises:
        ValueError: a mixture that is not in the plane, a bandwidth that is not positive, no climber or more than 250.
    """
    _check("climbers", climbers, mixture, bandwidth)
    bounds = _bounds(mixture)
    starts = _spread(climbers, bounds)
    alt = (
        f"A density of {len(mixture.weights)} Gaussians smoothed with bandwidth {bandwidth:g}, and the mean-shift "
        f"paths of {climbers} points that climb to its modes. Press to drop a point, drag the slider to smooth."
    )
    picture = _picture(mixture, starts, bounds, [bandwidth] * 300)
    return Page(assemble("meanShift", _data(mixture, bandwidth, starts, bounds, alt)), picture, alt)


def distillation_canvas(mixture: GaussianMixture, bandwidth: float = 0.1, points: int = 144) -> Page:
    """A canvas on which points move by SDS, mean shift or MSD, with σ or λ and its annealing in the reader's hand.

    All arithmetic is exact and runs in the page: x ← x + η (target − x), where the target of MSD is a draw from the
    closed-form product q_λ (Eq. 8). `mixture` is two-dimensional, written with 6 significant digits; `bandwidth` is the
    λ at which the annealing starts. The canvas opens at the end of a mean-shift run of 150 steps.

    Raises:
        ValueError: a mixture that is not in the plane, a bandwidth that is not positive, no point or more than 250.
    """
    _check("points", points, mixture, bandwidth)
    bounds = _bounds(mixture)
    starts = _spread(points, bounds)
    own = mixture.sample(4096, generator=torch.Generator().manual_seed(0))
    alt = (
        f"A density of {len(mixture.weights)} Gaussians and {points} points that moved by mean shift while the "
        f"bandwidth fell from {bandwidth:g} to a hundredth of it. Choose SDS, mean shift or MSD, and drag the level."
    )
    data = _data(mixture, bandwidth, starts, bounds, alt)
    data["entropy"] = round(-mixture.log_prob(own).mean().item(), 2)
    levels = [bandwidth * (1 - 0.99 * k / 150) for k in range(150)]
    return Page(assemble("distillation", data), _picture(mixture, starts, bounds, levels, step=0.2), alt)


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
    from . import figures  # noqa: F401  # its style must be set before `fn` draws for the first time

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
    """The live face of `explore`: a `.widget` that redraws the figure, and a picture of the opening state."""

    def __init__(self, fn: Callable[..., Figure], alt: str, start: dict[str, Any], choices: dict[str, list[Any]]):
        import ipywidgets

        sliders = {
            name: ipywidgets.SelectionSlider(
                options=[(_say(v), v) for v in options], value=start[name], description=name
            )
            for name, options in choices.items()
        }
        self._png, self._alt = _render(fn(**start), "png"), alt
        picture = ipywidgets.HTML(_img(self._png, alt))

        def redraw(_change: object) -> None:
            picture.value = _img(_render(fn(**{name: s.value for name, s in sliders.items()}), "png"), alt)

        for slider in sliders.values():
            slider.observe(redraw, "value")
        self.widget = ipywidgets.VBox([*sliders.values(), picture])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = dict(self.widget._repr_mimebundle_() or {})
        data |= {"image/png": base64.b64encode(self._png).decode(), "text/plain": self._alt}
        return data, {"image/png": {"alt": self._alt}}


def _printed(fn: Callable[..., Figure], alt: str, start: dict[str, Any], choices: dict[str, list[Any]]) -> Page:
    """The printed face of `explore`: a frame for each combination, the last keyword running fastest."""
    combinations = itertools.product(*choices.values())
    frames = [_render(fn(**dict(zip(choices, values, strict=True))), "webp") for values in combinations]
    sliders = [
        {"name": name, "values": [_say(v) for v in options], "start": options.index(start[name])}
        for name, options in choices.items()
    ]
    data = {"sliders": sliders, "frames": [base64.b64encode(frame).decode() for frame in frames], "alt": alt}
    return Page(assemble("frames", data), _render(fn(**start), "png"), alt)


def _render(figure: Figure, format: str) -> bytes:
    """The bytes of a figure, without metadata that would differ between two runs; the figure is closed."""
    import matplotlib.pyplot as plt

    from .figures import png, stamp

    if format == "png":
        return png(figure)
    stamp(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=130, pil_kwargs={"quality": 82, "method": 6})
    plt.close(figure)
    return buffer.getvalue()


def _img(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _say(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check(name: str, count: int, mixture: GaussianMixture, bandwidth: float) -> None:
    if mixture.means.shape[1] != 2:
        raise ValueError(f"mixture has dimension {mixture.means.shape[1]}; a canvas shows dimension 2")
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"bandwidth is {bandwidth}; it must be positive and finite")
    if not 1 <= count <= 250:
        raise ValueError(f"{name} is {count}; it must be from 1 to 250")


def _data(
    mixture: GaussianMixture, bandwidth: float, starts: Tensor, bounds: Sequence[float], label: str
) -> dict[str, Any]:
    """What a canvas is told; a component is [w, μ_x, μ_y, Σ_xx, Σ_xy, Σ_yy]."""
    Σ = mixture.covariances
    rows = torch.cat([mixture.weights[:, None], mixture.means, Σ[:, [0, 0, 1], [0, 1, 1]]], dim=1)
    return {
        "components": [[float(f"{v:.{DIGITS}g}") for v in row] for row in rows.tolist()],
        "bounds": [float(f"{side:.{DIGITS}g}") for side in bounds],
        "bandwidth": bandwidth,
        "starts": [[float(f"{v:.{DIGITS}g}") for v in start] for start in starts.tolist()],
        "label": label,
    }


def _bounds(mixture: GaussianMixture) -> list[float]:
    """left, right, bottom, top of all components, 2.5 standard deviations around their means."""
    reach = 2.5 * mixture.covariances.diagonal(dim1=-2, dim2=-1).sqrt()
    low, high = (mixture.means - reach).amin(0).tolist(), (mixture.means + reach).amax(0).tolist()
    return [low[0], high[0], low[1], high[1]]


def _spread(n: int, bounds: Sequence[float]) -> Tensor:
    """n points (n, 2) spread evenly: multiples of the plastic number's powers, the golden ratio of the plane."""
    left, right, bottom, top = bounds
    low, size = torch.tensor([left, bottom]).double(), torch.tensor([right - left, top - bottom]).double()
    powers = 1.324717957244746 ** torch.tensor([-1.0, -2.0]).double()
    return low + size * ((torch.arange(1, n + 1)[:, None] * powers + 0.5) % 1)


def _picture(
    mixture: GaussianMixture, starts: Tensor, bounds: Sequence[float], levels: Sequence[float], step: float = 1.0
) -> bytes:
    """The opening state of a canvas as a PNG: x ← x + step (D(x; λ) − x) through the levels λ, over p_λ at the last."""
    from matplotlib.figure import Figure

    from . import figures

    left, right, bottom, top = bounds
    aspect = min(1.2, max(0.5, (top - bottom) / (right - left)))
    figure = Figure(figsize=(6, 6 * aspect), layout="constrained")
    ax = figure.add_subplot(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.set_axis_off()
    states = [starts]
    for bandwidth in levels:
        states.append(states[-1].lerp(mixture.denoise(states[-1], bandwidth), step))
        if (states[-1] - states[-2]).abs().max() < 1e-4 * (right - left):
            break  # the rest is below a pixel
    x, y = torch.linspace(left, right, 120).double(), torch.linspace(bottom, top, 120).double()
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    blur = math.hypot(levels[-1], (right - left) / 240)  # what is finer than the grid would alias
    ax.contourf(x, y, (mixture.log_prob(grid, blur) / 2).exp(), levels=12, cmap=figures.INK, alpha=0.75)
    figures.paths(ax, states, color=figures.RED)
    figures.points(ax, starts, color="white", size=18, edgecolors=figures.RED, linewidths=1.0, zorder=4)
    return figures.png(figure)
