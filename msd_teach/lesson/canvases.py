"""Canvases that do their own arithmetic in the page: mean shift, and distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..plane.mixture import GaussianMixture
from .web import Page, assemble

DIGITS = 6  # significant digits of a mixture's numbers in a page: far below a pixel


def mean_shift_canvas(mixture: GaussianMixture, bandwidth: float = 0.2, climbers: int = 12) -> Page:
    """A canvas on which the reader drops points that climb p_λ by mean shift, and drags λ.

    `mixture` is two-dimensional; its numbers go into the page with 6 significant digits. `bandwidth` is the λ at which
    the canvas opens (a standard deviation), with `climbers` points that have already climbed.

    Raises:
        ValueError: a mixture that is not in the plane, a bandwidth that is not positive, no climber or more than 250.
    """
    _check("climbers", climbers, mixture, bandwidth)
    bounds = extent(mixture)
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
    bounds = extent(mixture)
    starts = _spread(points, bounds)
    alt = (
        f"A density of {len(mixture.weights)} Gaussians and {points} points that moved by mean shift while the "
        f"bandwidth fell from {bandwidth:g} to a hundredth of it. Choose SDS, mean shift or MSD, and drag the level."
    )
    data = _data(mixture, bandwidth, starts, bounds, alt)
    data["entropy"] = round(entropy(mixture), 2)
    levels = [bandwidth * (1 - 0.99 * k / 150) for k in range(150)]
    return Page(assemble("distillation", data), _picture(mixture, starts, bounds, levels, step=0.2), alt)


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


def extent(mixture: GaussianMixture, reach: float = 2.5) -> list[float]:
    """left, right, bottom, top of all components, `reach` standard deviations around their means."""
    spread = reach * mixture.covariances.diagonal(dim1=-2, dim2=-1).sqrt()
    low, high = (mixture.means - spread).amin(0).tolist(), (mixture.means + spread).amax(0).tolist()
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
    import matplotlib.pyplot as plt

    from . import figures

    left, right, bottom, top = bounds
    aspect = min(1.2, max(0.5, (top - bottom) / (right - left)))
    with figures.style():
        figure = plt.figure(figsize=(6, 6 * aspect))
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


def entropy(mixture: GaussianMixture) -> float:
    """The mean −log p of samples of p, in nats."""
    return -mixture.log_prob(mixture.sample(4096, generator=torch.Generator().manual_seed(0))).mean().item()
