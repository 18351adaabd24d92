"""The plane's test densities, each an exact Gaussian mixture, and points drawn from a picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..tensors import at_least_one
from .mixture import GaussianMixture, doubles

__all__ = [
    "GaussianMixture",
    "checkerboard",
    "eight_gaussians",
    "fractal",
    "image_density",
    "pinwheel",
    "spiral",
]

FRACTAL_DEPTH = 7
FRACTAL_ORIGIN = np.array([0.0030, 0.0325])
FRACTAL_SCALE = np.array([1.3136, 1.3844])  # brings the union of both classes to standard deviation 0.5


def fractal(classes: str = "A") -> GaussianMixture:
    """Two trees of thin Gaussians that branch seven times, 1016 components a class (Karras et al. 2024, toy example).

    `classes` is "A", "B" or "AB". Class B continues the random stream of class A, so both are always grown.

    Raises:
        ValueError: other classes.
    """
    if classes not in ("A", "B", "AB"):
        raise ValueError(f"classes is {classes!r}; it may be 'A', 'B' or 'AB'")
    random = np.random.RandomState(2)  # the published density is this stream
    trees = {name: _grow(random, 0, FRACTAL_ORIGIN, turns * math.pi) for name, turns in (("A", 0.25), ("B", 1.25))}
    parts = [part for name in classes for part in trees[name]]
    return _mixture(*(np.stack(column) for column in zip(*parts, strict=True)))


def _grow(random: np.random.RandomState, depth: int, root: np.ndarray, angle: float) -> list[tuple]:
    """(weight, mean, covariance) of the branch that starts at `root`, then of its two children, depth first."""
    if depth == FRACTAL_DEPTH:
        return []
    u = np.array([math.cos(angle), math.sin(angle)])
    length = 0.292 * 0.8**depth * (1 + 0.2 * random.randn())
    ratio = 0.2 * 0.8**depth / length
    size = FRACTAL_SCALE * length * 0.06
    covariance = (np.outer(u, u) + (np.eye(2) - np.outer(u, u)) * ratio**2) * np.outer(size, size)
    parts = [
        (length * 0.5**depth, (root + u * length * along) * FRACTAL_SCALE, covariance)
        for along in np.linspace(0.07, 0.93, 8)
    ]
    for sign in (1, -1):
        turn = sign * 0.7**depth * (1 + 0.2 * random.randn())
        parts += _grow(random, depth + 1, root + u * length, angle + turn)
    return parts


def spiral(components: int = 200) -> GaussianMixture:
    """Two interleaved spiral arms (after Rozen et al. 2021), `components` Gaussians an arm.

    An arm is (−n cos n, n sin n)/12 for n = √U·540° with U uniform, the other its mirror image; noise .1 before the
    division by 12 makes arms of width .0083. Components are spaced evenly in arc length and weighted by dU.
    """
    components = at_least_one("components", components)
    noise, shrink = 0.1, 1 / 12
    fine = np.linspace(0, math.radians(540), 20_001)
    arc = np.concatenate([[0], np.cumsum(np.hypot(np.diff(-fine * np.cos(fine)), np.diff(fine * np.sin(fine))))])
    n = np.interp((np.arange(components) + 0.5) / components * arc[-1], arc, fine)
    tangent = np.stack([n * np.sin(n) - np.cos(n), n * np.cos(n) + np.sin(n)], -1)
    speed = np.linalg.norm(tangent, axis=-1, keepdims=True)
    mean = np.stack([-n * np.cos(n), n * np.sin(n)], -1) * shrink
    u = tangent / speed
    spread = SPREAD * arc[-1] / components
    covariance = (_outer(u) * (spread**2) + np.eye(2) * noise**2) * shrink**2
    weight = n / speed[:, 0]  # dU/ds, since U = (n / 540°)² and ds = speed dn
    return _mixture(np.tile(weight, 2), np.concatenate([mean, -mean]), np.tile(covariance, (2, 1, 1)))


def pinwheel(components: int = 60) -> GaussianMixture:
    """Five curved vanes (after Rozen et al. 2021), `components` Gaussians a vane.

    A vane is the Gaussian (r, t) ~ N(1, .3²) × N(0, .1²) turned by the angle exp(r)/4 and divided by 2.5. The turn
    depends on r alone, so that across a vane the density stays Gaussian; components are spaced evenly in r.
    """
    if at_least_one("components", components) < 2:
        raise ValueError(f"components is {components}; a vane needs at least 2")
    radial, tangential, rate, vanes, shrink = 0.3, 0.1, 0.25, 5, 1 / 2.5
    r = 1 + radial * np.linspace(-3, 3, components)
    weight = np.exp(-(((r - 1) / radial) ** 2) / 2)
    spread = SPREAD * (r[1] - r[0])
    parts = []
    for vane in range(vanes):
        angle = 2 * math.pi * vane / vanes + rate * np.exp(r)
        outward = np.stack([np.cos(angle), np.sin(angle)], -1)
        across = np.stack([-np.sin(angle), np.cos(angle)], -1)
        along = outward + (rate * np.exp(r) * r)[:, None] * across
        covariance = (_outer(along) * spread**2 + _outer(across) * tangential**2) * shrink**2
        parts.append((weight, outward * r[:, None] * shrink, covariance))
    return _mixture(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def checkerboard(components: int = 8) -> GaussianMixture:
    """The eight dark squares of a 4 × 4 board on (−1, 1)², each a lattice of components × components Gaussians."""
    step = 0.5 / at_least_one("components", components)
    offsets = (np.arange(components) + 0.5) * step
    corners = [(-1 + 0.5 * i, -1 + 0.5 * j) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    lattice = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1).reshape(-1, 2)
    mean = np.concatenate([lattice + corner for corner in corners])
    return _mixture(np.ones(len(mean)), mean, np.tile(np.eye(2) * (SPREAD * step) ** 2, (len(mean), 1, 1)))


def eight_gaussians() -> GaussianMixture:
    """Eight equal Gaussians of standard deviation .125 on the unit circle."""
    angle = np.arange(8) * math.pi / 4
    return _mixture(np.ones(8), np.stack([np.cos(angle), np.sin(angle)], -1), np.tile(np.eye(2) / 64, (8, 1, 1)))


def image_density(image: np.ndarray | Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n points on (−1, 1)² with the grey levels of `image` (H, W) as density, (n, 2) in float64.

    The longer side spans (−1, 1); rows run downwards as in the picture. Points are uniform within their pixel.

    Raises:
        ValueError: an image that is not (H, W), has negative or non-finite levels, or is black; an n that is not 1, 2, …
    """
    n = at_least_one("n", n)
    level = doubles("image", image)[0].detach()
    if level.ndim != 2 or not level.isfinite().all() or (level < 0).any() or level.sum() == 0:
        raise ValueError(f"image has shape {tuple(level.shape)}; it must be (H, W), finite, >= 0 and not black")
    height, width = level.shape
    uniform = {"dtype": torch.float64, "generator": generator}
    # An inverse cumulative sum, since multinomial stops at 2²⁴ pixels.
    pixel = torch.searchsorted(level.flatten().cumsum(0), torch.rand(n, **uniform) * level.sum(), right=True)
    pixel = pixel.clamp(max=height * width - 1)
    column, row = pixel % width + torch.rand(n, **uniform), pixel // width + torch.rand(n, **uniform)
    return torch.stack([2 * column - width, height - 2 * row], -1) / max(height, width)


SPREAD = 0.6  # standard deviation of a component along its chain, in spacings: no visible ripple, little blur


def _outer(u: np.ndarray) -> np.ndarray:
    return u[..., :, None] * u[..., None, :]


def _mixture(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> GaussianMixture:
    return GaussianMixture(torch.from_numpy(weights), torch.from_numpy(means), torch.from_numpy(covariances))
