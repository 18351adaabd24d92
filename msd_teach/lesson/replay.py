"""Recorded optimisations to scrub through in the page, two methods side by side."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..plane.mixture import GaussianMixture
from .canvases import DIGITS, entropy, extent
from .web import Page, assemble

GRID = (
    2047  # steps of a position over the side of the whole picture: rounded by a fifth of a pixel, more in the close-up
)
TONES = 63  # steps of the square root of a density


class Ground(NamedTuple):
    """A picture of a density: its lower left corner, the side of a cell, and values (rows, columns) from below."""

    corner: list[float]
    cell: float
    image: Tensor


def replay_canvas(
    runs: Mapping[tuple[str, str], Tensor],
    densities: Mapping[str, GaussianMixture],
    steps: Sequence[int],
    levels: Mapping[str, Sequence[str]] | None = None,
    default: tuple[str, str, str] | None = None,
) -> Page:
    """Recorded optimisations to scrub through: two methods side by side at one step, over one density.

    `runs` maps every (density, method) to its states (frames, points, 2), where point i starts at one place in all
    runs; `steps` numbers the frames. `levels` gives a method a note for each frame, such as "λ = 0.22". The canvas
    opens at the last frame of `default`: a density, a left and a right method (the first ones otherwise). Positions go
    into the page with 11 bits a coordinate, with the mean −log p of the states as given, in nats; points that stray far
    from density and starts wait at the edge of the picture.

    Raises:
        ValueError: a density in runs that is not drawn, or a method without a run on one of them; states that are not
            finite or differ in shape; steps that do not increase; a mixture that is not in the plane.
    """
    names, methods = list(densities), list(dict.fromkeys(method for _, method in runs))
    levels = levels or {}
    _check(runs, densities, methods, steps, levels)
    density, *pair = default or (names[0], *(methods * 2)[:2])
    if density not in names or len(pair) != 2 or not set(pair) <= set(methods):
        raise ValueError(f"default is {default}; it must be one of {names}, then two of {methods}")
    states = [torch.stack([runs[name, method].detach().cpu() for method in methods]).double() for name in names]
    losses = [-mixture.log_prob(x).mean(-1) for mixture, x in zip(densities.values(), states, strict=True)]
    states = [_within_reach(x, mixture) for x, mixture in zip(states, densities.values(), strict=True)]
    closeups = [_around(x[:, -1], mixture) for mixture, x in zip(densities.values(), states, strict=True)]
    bounds = _around(torch.stack(states), *densities.values())
    grounds = [_ground(mixture) for mixture in densities.values()]
    shown = names.index(density)
    last = {
        method: f"{loss:.2f} nats".replace("-", "−") for method, loss in zip(methods, losses[shown][:, -1], strict=True)
    }
    alt = (
        f"{states[0].shape[2]} points on the density {density} after {steps[-1]} steps of each method. Their mean −log p: "
        f"{', '.join(f'{method} {loss}' for method, loss in last.items())}. Choose two methods and drag the step."
    )
    data = {
        "densities": [
            {
                "name": name,
                "entropy": round(entropy(mixture), 2),
                "box": box,
                "ground": [*ground[:2], ground.image.shape],
            }
            for (name, mixture), box, ground in zip(densities.items(), closeups, grounds, strict=True)
        ],
        "methods": [{"name": method, "levels": list(levels.get(method, []))} for method in methods],
        "losses": [[[round(loss, 2) for loss in run] for run in group.tolist()] for group in losses],
        "steps": [int(step) for step in steps],
        "points": states[0].shape[2],
        "bounds": bounds,
        "grid": GRID,
        "tones": TONES,
        "chosen": [shown, *map(methods.index, pair)],
        "packed": _packed(torch.stack(states), bounds, [ground.image for ground in grounds]),
        "label": alt,
    }
    return Page(assemble("replay", data), _picture(grounds[shown], closeups[shown], states[shown][:, -1], last), alt)


def _check(
    runs: Mapping[tuple[str, str], Tensor],
    densities: Mapping[str, GaussianMixture],
    methods: Sequence[str],
    steps: Sequence[int],
    levels: Mapping[str, Sequence[str]],
) -> None:
    if not runs:
        raise ValueError("runs is empty; it must have a run of at least one method on at least one density")
    wanted = {(name, method) for name in densities for method in methods}
    if wanted != set(runs):
        pairs = sorted(wanted ^ set(runs))
        raise ValueError(
            f"runs and densities differ by {pairs}; every density needs a run of every method, and no other"
        )
    for name, mixture in densities.items():
        if mixture.means.shape[1] != 2:
            raise ValueError(f"densities[{name!r}] has dimension {mixture.means.shape[1]}; a canvas shows dimension 2")
    if len(steps) < 2 or not all(a < b for a, b in pairwise(steps)):
        raise ValueError(f"steps is {list(steps)}; it must be two or more increasing numbers")
    points = next(iter(runs.values())).shape[-2:-1].numel()
    if not 1 <= points <= 250:
        raise ValueError(f"runs have {points} points; a canvas shows from 1 to 250")
    for pair, states in runs.items():
        if states.shape != (len(steps), points, 2):
            raise ValueError(f"runs[{pair}] has shape {tuple(states.shape)}; it must be {(len(steps), points, 2)}")
        if not states.isfinite().all():
            raise ValueError(f"runs[{pair}] is not finite; all positions must be")
    for method, notes in levels.items():
        if method not in methods or len(notes) != len(steps):
            raise ValueError(f"levels[{method!r}] has {len(notes)} notes; it takes {len(steps)}, for one of {methods}")


def _within_reach(states: Tensor, mixture: GaussianMixture, reach: float = 2.0) -> Tensor:
    """States (methods, frames, points, 2) moved to the border of the starts and of `reach` extents of the mixture."""
    sides = torch.tensor(extent(mixture)).double().reshape(2, 2)
    middle, half = sides.mean(1), (sides[:, 1] - sides[:, 0]) / 2
    low, high = states[:, 0].flatten(0, -2).aminmax(dim=0)
    return states.clamp(low.minimum(middle - reach * half), high.maximum(middle + reach * half))


def _around(states: Tensor, *mixtures: GaussianMixture) -> list[float]:
    """left, right, bottom, top of all states (…, 2) and mixtures, with a margin for the size of a dot."""
    extents = torch.tensor([extent(mixture) for mixture in mixtures]).double().reshape(-1, 2, 2)
    low, high = torch.cat([states.flatten(0, -2), *extents.unbind(2)]).aminmax(dim=0)
    margin = 0.02 * (high - low).max()
    return _digits(*torch.stack([low - margin, high + margin], 1).flatten().tolist())


def _ground(mixture: GaussianMixture, cells: int = 160) -> Ground:
    """√p in steps on a lattice; what is finer than a cell is blurred."""
    left, right, bottom, top = extent(mixture, reach=4)
    left, bottom, cell = _digits(left, bottom, max(right - left, top - bottom) / cells)
    x, y = (start + cell * torch.arange(int((end - start) / cell) + 2) for start, end in ((left, right), (bottom, top)))
    p = mixture.log_prob(torch.stack(torch.meshgrid(x.double(), y.double(), indexing="xy"), -1), cell / 2).exp()
    full = p.quantile(0.996).maximum(p.max() / 20)
    return Ground([left, bottom], cell, ((p / full).clamp(max=1).sqrt() * TONES).round().byte())


def _digits(*values: float) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]


def _packed(states: Tensor, bounds: Sequence[float], images: Sequence[Tensor]) -> str:
    """All states (densities, methods, frames, points, 2) and images as base64 of deflated bytes.

    Coordinates are integers up to GRID, frame by frame; their changes from frame to frame, in zigzag code 0, −1, 1, −2, …, are
    written as all low bytes and then all high ones. This takes two thirds of the bytes of the coordinates themselves.
    """
    low, high = torch.tensor(bounds).double().reshape(2, 2).unbind(1)
    q = ((states - low) / (high - low) * GRID).round().int().movedim((2, 4), (0, 3))
    change = q.diff(dim=0, prepend=torch.zeros_like(q[:1]))
    code = ((change << 1) ^ (change >> 31)).flatten()
    parts = [code & 255, code >> 8, *(image.flatten() for image in images)]
    return base64.b64encode(zlib.compress(torch.cat([part.byte() for part in parts]).numpy().tobytes(), 9)).decode()


def _picture(ground: Ground, box: Sequence[float], ends: Tensor, titles: Mapping[str, str]) -> bytes:
    """Where the points of every method ended, (methods, points, 2), over the density, as a PNG."""
    from . import figures

    (left, bottom), cell, image = ground
    rows, columns = image.shape
    edges = torch.tensor([-0.5, columns - 0.5, -0.5, rows - 0.5]) * cell + torch.tensor([left, left, bottom, bottom])
    fig, axes = figures.planes([f"{method}\n{loss}" for method, loss in titles.items()], rows=-(-len(titles) // 4))
    for ax, x in zip(axes, ends, strict=True):
        ax.imshow(image.numpy(), extent=edges.tolist(), origin="lower", cmap=figures.INK, interpolation="bilinear")
        ax.set(xlim=box[:2], ylim=box[2:])
        figures.points(ax, x, figures.RED, size=7, edgecolors="white", linewidths=0.3, alpha=1)
    return figures.png(fig)
