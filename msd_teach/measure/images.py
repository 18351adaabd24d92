"""Figures of merit of pictures: how far apart two sets are and how well captions fit, in the features of any network;
how true and how sharp copies are; how saturated.

A pair that is returned is a mean and its standard error over independent pictures, to first order, NaN for a single one.
What they are worth depends on the number of pictures, and `r_precision` on that of captions too: print them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..tensors import at_least_one
from .inputs import floats, points, rgb

BLOCK = 2**22  # kernel values held at once


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


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased squared MMD of features (N, d) and (M, d), in float64: KID (Bińkowski et al. 2018) without subsets.

    The kernel is (x·y/d + 1)³. Unlike the Fréchet distance it needs no more features than dimensions, and is 0 on
    average, so at times below, where a and b are of one distribution. Multiply unit features, as CLIP's, by √d: as they
    are, x·y/d is so small that the kernel is nearly linear and compares little but means.

    Raises:
        ValueError: fewer than two features, other shapes, values that are not finite.
    """
    a = points("a", a, 2)
    b = points("b", b, 2, a.shape[1])

    def total(x: Tensor, y: Tensor) -> float:
        return sum(((p @ y.T / x.shape[1] + 1) ** 3).sum().item() for p in x.split(max(1, BLOCK // len(y))))

    def within(x: Tensor) -> float:
        itself = ((x.square().mean(1) + 1) ** 3).sum().item()
        return (total(x, x) - itself) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b))


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


def resamplings(count: int, repeats: int = 200, seed: int = 0) -> Tensor:
    """Indices (repeats, count) of `count` units drawn again with replacement: the same for all who compare in pairs.

    Raises:
        ValueError: a count or repeats that are no whole numbers, at least 1.
    """
    shape = (at_least_one("repeats", repeats), at_least_one("count", count))
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def clip_score(pictures: Tensor, captions: Tensor) -> tuple[float, float]:
    """100 max(cos, 0) of the features (N, d) of pictures with those (N, d) of their captions (Hessel et al. 2021).

    100 is torchmetrics' scale, 2.5 the paper's. Each picture is cut at 0, as in the paper; torchmetrics cuts their mean.

    Raises:
        ValueError: other shapes, values that are not finite, features that are 0.
    """
    pictures = _directions("pictures", pictures)
    captions = _directions("captions", captions, pictures.shape[1])
    if len(captions) != len(pictures):
        raise ValueError(f"captions has {len(captions)} rows; it must have {len(pictures)}, one for each picture")
    return _mean(100 * (pictures * captions).sum(1).clamp(min=0))


def r_precision(pictures: Tensor, captions: Tensor, own: Tensor) -> tuple[float, float]:
    """The share of pictures (N, d) to which, of all captions (M, d), their own is the nearest, by the cosine of features.

    CLIP R-precision at R = 1 as in Dream Fields (Jain et al. 2022) and DreamFusion (Poole et al. 2023), with the whole
    prompt set to choose from; AttnGAN (Xu et al. 2018), where it began, draws 99 wrong captions a picture. `own` (N,)
    are indices of captions, which are to be distinct. k captions that tie for the nearest count 1/k each, so that 1/M
    is chance. The error is binomial: it is 0 where all or none are right.

    Raises:
        ValueError: other shapes, values that are not finite, features that are 0, indices that are none.
    """
    pictures = _directions("pictures", pictures)
    captions = _directions("captions", captions, pictures.shape[1])
    whole = isinstance(own, Tensor) and own.dtype == torch.long
    if not whole or own.shape != pictures.shape[:1] or own.min() < 0 or own.max() >= len(captions):
        raise ValueError(f"own is {own!r}; it must be {len(pictures)} indices of {len(captions)} captions, torch.long")
    cosines = pictures @ captions.T
    nearest = cosines >= cosines.max(1, keepdim=True).values - 1e-12  # equal but for rounding
    own = own.to(nearest.device)
    return _mean(nearest[torch.arange(len(own)), own].double() / nearest.sum(1))


def saturation(x: Tensor) -> tuple[float, float]:
    """Mean saturation S = (max - min) / max of HSV (Smith 1978) of pictures (N, 3, H, W) in [-1, 1]; 0 at black.

    0 for greys and 1 for pure colours, over all pixels, background included; what lies outside of [-1, 1] is cut.

    Raises:
        ValueError: other shapes, values that are not finite.
    """
    x = (rgb("x", x).clamp(-1, 1) + 1) / 2
    low, high = x.aminmax(dim=1)
    return _mean((1 - low / high).where(high > 0, 0).mean((1, 2)))


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
    detail does: where y are to be x themselves, read it beside `explained_share`.

    Raises:
        ValueError: other shapes, values that are not finite, or x without any detail (under the mask).
    """
    x, y, mask = _copies(x, y, mask)
    return _quotient(_detail(y, mask), _detail(x, mask))


def explained_share(x: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[float, float]:
    """The share of the Laplacian of pictures x that is in their copies y, and its standard error.

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


def _directions(name: str, features: Tensor, dimensions: int | None = None) -> Tensor:
    """Features (n, d) in float64, scaled to length 1."""
    features = points(name, features, 1, dimensions)
    length = features.norm(dim=1, keepdim=True)
    if not length.all():
        raise ValueError(f"{name} has a row of zeros; every feature must have a direction")
    return features / length


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean of values (N,), and its standard error."""
    return _quotient(values, torch.ones_like(values))


def _quotient(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The quotient of the means of pairs (N,), and its standard error to first order."""
    if b.sum() == 0:
        raise ValueError("x has no detail there: its Laplacian is 0; it must be a picture that is not flat")
    value = a.mean() / b.mean()
    error = (a - value * b).square().mean().sqrt() / b.mean() / max(len(a) - 1, 1) ** 0.5
    return value.item(), error.item() if len(a) > 1 else math.nan
