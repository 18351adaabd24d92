"""One style for every figure, and the plots that recur: densities, fields, points and paths in the plane."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..plane.mixture import GaussianMixture
from . import budget

# Okabe and Ito's palette: told apart with every common colour blindness, and here also by line style or marker.
BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#222222"
PALETTE = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#dfe6ee", "#a9bdd0", "#5f83a3", "#274e72", "#0b2239"])

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.figsize": (7.2, 3.6),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=PALETTE) + cycler(linestyle=LINES),
    "axes.grid": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "image.cmap": "viridis",
}


@contextmanager
def style() -> Iterator[None]:
    """The book's style for what is drawn inside, whatever the process has set."""
    with plt.rc_context(STYLE):
        yield


def use_style() -> None:
    """Draws all further figures of this process in the book's style; a chapter calls it once, after its imports."""
    plt.rcParams.update(STYLE)


def show(fig: Figure, alt: str) -> None:
    """Displays `fig` once, with `alt`: a text of 20 characters or more that says what is shown and how it was made.

    A figure made at the smoke budget says so in its corner.

    Raises:
        ValueError: an alt text that is too short to help.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"alt is {alt!r}; it must describe the figure in at least 20 characters")
    display({"image/png": png(fig), "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def png(fig: Figure) -> bytes:
    """The figure as a picture, the same bytes in every run; closes it.

    128 colours, a third of the bytes: chosen so that small marks keep theirs, then fitted to all pixels, for shades.
    """
    stamp(fig)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(fig)
    picture, buffer = Image.open(buffer).convert("RGB"), io.BytesIO()
    palette = picture.quantize(128, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def stamp(fig: Figure) -> None:
    """Writes into the corner of a figure made at the smoke budget that it was."""
    if budget.NAME == "smoke":
        fig.text(0.995, 0.005, "smoke budget", ha="right", va="bottom", fontsize=7, color="0.5")


def lattice(n: int, span: float = 1.5) -> Tensor:
    """n × n points on [−span, span]², row by row from below, (n·n, 2) in float64."""
    axis = torch.linspace(-span, span, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).flip(-1)


@style()
def planes(titles: Sequence[str], span: float = 1.5, rows: int = 1, width: float = 7.2) -> tuple[Figure, np.ndarray]:
    """A figure with one square, frameless view of [−span, span]² for each title; axes as an array of that length."""
    columns = -(-len(titles) // rows)
    fig, axes = plt.subplots(rows, columns, figsize=(width, rows * (width / columns + 0.25)), squeeze=False)
    for ax in axes.flat[len(titles) :]:
        ax.remove()
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set(title=title, xlim=(-span, span), ylim=(-span, span), aspect="equal", xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color="0.8", linewidth=0.8)
    return fig, axes.flatten()[: len(titles)]


@style()
def gallery(images: Tensor, rows: Sequence[str] = (), columns: Sequence[str] = (), size: int = 128) -> Figure:
    """A figure of images (rows, columns, 3, H, W) in [0, 1], as a sheet with a name at every row and column.

    Each is about `size` pixels wide; small ones are enlarged by a whole number, so that their pixels stay alike.

    Raises:
        ValueError: images of another shape or kind, or names that are not one for each row and column.
    """
    if images.ndim != 5 or images.shape[2] != 3 or not images.is_floating_point() or not images.numel():
        wanted = "(rows, columns, 3, H, W), of floats in [0, 1]"
        raise ValueError(f"images have shape {tuple(images.shape)}, {images.dtype}; it must be {wanted}")
    r, c, _, h, w = images.shape
    if len(rows) not in (0, r) or len(columns) not in (0, c):
        raise ValueError(f"there are {len(rows)} rows and {len(columns)} columns of names for {r} and {c} of images")
    gap = max(2, w // 32)
    zoom = max(1, round(size / w)) if w <= size else size / w
    sheet = torch.ones(r, c, 3, h + gap, w + gap)
    sheet[..., :h, :w] = images.detach().float().cpu().clamp(0, 1)
    sheet = sheet.permute(0, 3, 1, 4, 2).reshape(r * (h + gap), c * (w + gap), 3)[:-gap, :-gap]
    fig = plt.figure(layout="none")
    height, width = (n * zoom / fig.dpi for n in sheet.shape[:2])
    fig.set_size_inches(width, height)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.imshow(sheet.numpy(), interpolation="nearest" if w <= size else "antialiased")
    ax.set_xticks([i * (w + gap) + w / 2 for i in range(len(columns))], columns)
    ax.set_yticks([i * (h + gap) + h / 2 for i in range(len(rows))], rows)
    ax.tick_params(length=0, labelsize=9, top=False, labeltop=True, bottom=False, labelbottom=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    box = fig.get_tightbbox()  # room for the names, in whole pixels
    left, above = (math.ceil(room * fig.dpi) / fig.dpi for room in (-box.x0, box.y1 - height))
    fig.set_size_inches(left + width, height + above)
    ax.set_position((left / (left + width), 0, width / (left + width), height / (height + above)))
    return fig


def density(ax: Axes, mixture: GaussianMixture, sigma: float = 0.0, pixels: int = 300) -> None:
    """Draws √p_σ in ink over the view of `ax`; the root keeps thin tails visible beside dense cores."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    x, y = (torch.linspace(*ends, pixels, dtype=torch.float64) for ends in ((left, right), (low, high)))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    level = (mixture.log_prob(grid, sigma) / 2).exp()
    extent = (left, right, low, high)
    ceiling = float(level.quantile(0.998)) if level.numel() <= 2**24 else float(level.max())
    ax.imshow(
        level.numpy(), origin="lower", extent=extent, cmap=INK, vmin=0, vmax=ceiling, interpolation="bilinear", zorder=0
    )


def points(ax: Axes, x: Tensor, color: str = BLUE, marker: str = "o", size: float = 4, **style) -> None:
    """Scatters points (n, 2); further keywords go to matplotlib's scatter."""
    style = {"linewidths": 0, "alpha": 0.7, "zorder": 3} | style
    ax.scatter(*x.detach().cpu().T.numpy(), s=size, c=color, marker=marker, **style)


def paths(ax: Axes, states: Sequence[Tensor], color: str = BLUE, **style) -> None:
    """Draws the path of every point through `states`, each (n, 2), with a dot at its end."""
    track = torch.stack(list(states)).detach().cpu().numpy()
    style = {"linewidth": 0.9, "alpha": 0.8, "linestyle": "-", "zorder": 2} | style
    ax.plot(track[:, :, 0], track[:, :, 1], color=color, **style)
    points(ax, torch.from_numpy(track[-1]), color, size=12, alpha=1)


def arrows(ax: Axes, x: Tensor, v: Tensor, color: str = BLUE, length: float | None = None, **style) -> None:
    """Draws the field v at x, both (n, 2): to scale, or all of one `length` (a plot of directions)."""
    if length is not None:
        v = v / v.norm(dim=-1, keepdim=True).clamp(min=1e-300) * length
    style = {"width": 0.0035, "headwidth": 4, "zorder": 3} | style
    ax.quiver(*x.T.numpy(), *v.T.numpy(), color=color, angles="xy", scale_units="xy", scale=1, **style)
