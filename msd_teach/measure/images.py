"""How far apart two sets of pictures are, in the features of any network; how true and how sharp copies of pictures are."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..tensors import at_least_one
from .inputs import floats, points


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features (N, d) and (M, d), in float64 (Heusel et al. 2017).

    Raises:
        ValueError: fewer than d + 1 features, which leaves a covariance without full rank; other shapes, values that
            are not finite.
    """
    a = points("a", a, 2)
    b = points("b", b, 2, a.shape[1])
    for name, features in (("a", a), ("b", b)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"{name} has {len(features)} features of {features.shape[1]} dimensions; it needs more than that"
            )
    # the trace of (S_a S_b)^(1/2), by the eigenvalues of S_a^(1/2) S_b S_a^(1/2)
    values, vectors = torch.linalg.eigh(torch.cov(a.T))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    spread = torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def bootstrap(
    statistic: Callable[[Tensor, Tensor], float], a: Tensor, b: Tensor, repeats: int = 200, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of a distance of two samples, from its spread when both are drawn again with replacement.

    It is up to twice too wide where the true distance is zero.

    Raises:
        ValueError: fewer than one repeat, or what `statistic` refuses.
    """
    repeats = at_least_one("repeats", repeats)
    generator = torch.Generator().manual_seed(seed)

    def again(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(x),), generator=generator)]

    found = statistic(a, b)
    values = torch.tensor([statistic(again(a), again(b)) for _ in range(repeats)], dtype=torch.float64)
    # drawing again adds sampling noise, which a distance, never negative, counts as distance: that shift is taken out
    values += found - values.mean()
    return float(values.quantile(0.025)), float(values.quantile(0.975))


def signal_to_noise(x: Tensor, y: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of copies y of pictures x, (N, C, H, W) in [-1, 1]; infinite where they agree.

    Over all pixels, or weighted by a mask (N, H, W).

    Raises:
        ValueError: other shapes, values that are not finite, a mask that is nowhere positive.
    """
    x, y, mask = _copies(x, y, mask)
    error = (mask * (x - y).square().mean(1)).sum().item() / mask.sum().item()
    return 10 * math.log10(4 / error) if error > 0 else math.inf


def sharpness(x: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    """Mean square of the Laplacian of pictures y over that of true ones x, (N, C, H, W), and its standard error.

    1 is as sharp as the truth, over all pixels or under a mask (N, H, W). Sharpening a picture raises it as well as
    detail does: where y are to be x themselves, read it beside `explained_share`. The error is over independent pairs,
    to first order; NaN for a single one.

    Raises:
        ValueError: other shapes, values that are not finite, or x without any detail (under the mask).
    """
    x, y, mask = _copies(x, y, mask)
    return _quotient(_detail(y, mask), _detail(x, mask))


def explained_share(x: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    """The share of the Laplacian of pictures x that is in their copies y, and its standard error as in `sharpness`.

    1 - |Lap(y - x)|^2 / |Lap x|^2: 1 for a perfect copy, 0 for one without detail, less for one whose detail is wrong.

    Raises:
        ValueError: as `sharpness`.
    """
    x, y, mask = _copies(x, y, mask)
    missing, error = _quotient(_detail(y - x, mask), _detail(x, mask))
    return 1 - missing, error


def _copies(x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, as many copies, and the weights of the pixels (N, H, W), in float64."""
    fits = isinstance(x, Tensor) and x.ndim == 4 and len(x) > 0 and min(x.shape[2:]) >= 3
    x = floats("x", x, fits, "(N, C, H, W) with H, W >= 3")
    y = floats("y", y, isinstance(y, Tensor) and y.shape == x.shape, f"{tuple(x.shape)}, as x")
    shape = (len(x), *x.shape[2:])
    if mask is None:
        return x, y, torch.ones(1, 1, 1, dtype=torch.float64).expand(shape)
    mask = floats("mask", mask, isinstance(mask, Tensor) and mask.shape == shape, f"{shape}")
    if mask.min() < 0 or mask.max() == 0:
        raise ValueError(f"mask is from {mask.min():g} to {mask.max():g}; it must be >= 0, and somewhere positive")
    return x, y, mask


def _detail(x: Tensor, mask: Tensor) -> Tensor:
    """The squared Laplacian of each picture, summed over the pixels that have four neighbours, (N,)."""

    def one_part(x: Tensor, mask: Tensor) -> Tensor:
        near = x[..., 1:-1, :-2] + x[..., 1:-1, 2:] + x[..., :-2, 1:-1] + x[..., 2:, 1:-1]
        squared = (near - 4 * x[..., 1:-1, 1:-1]).square().mean(1)
        return (mask[:, 1:-1, 1:-1] * squared).sum((1, 2))

    return torch.cat([one_part(*part) for part in zip(x.split(250), mask.split(250), strict=True)])


def _quotient(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The quotient of the means of pairs (N,), and its standard error to first order."""
    if b.sum() == 0:
        raise ValueError("x has no detail there: its Laplacian is 0; it must be a picture that is not flat")
    value = a.mean() / b.mean()
    error = (a - value * b).square().mean().sqrt() / b.mean() / max(len(a) - 1, 1) ** 0.5
    return value.item(), error.item() if len(a) > 1 else math.nan
