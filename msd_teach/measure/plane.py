"""What the tables report: how good and how varied samples are, and how much a denoiser call tells about a gradient.

Precision, recall and MMD² depend on the numbers of points: compare rows with equal counts. Arithmetic is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..plane.mixture import GaussianMixture
from ..tensors import at_least_one
from .inputs import floats, points, positive

BLOCK = 2**20  # distances held at once
PAIRED = 4096  # the most reference points whose pairs enter the median: 8 million distances, 64 MiB


def nll(density: GaussianMixture, x: Tensor) -> float:
    """Mean −log p(x) in nats over points x (n, d); draws from p itself score its entropy, on average."""
    return -float(density.log_prob(points("x", x, 1, density.means.shape[1])).mean())


class PrecisionRecall(NamedTuple):
    """The shares of generated points near the reference, and of reference points near generated ones."""

    precision: float
    recall: float


def precision_recall(generated: Tensor, reference: Tensor, k: int = 3) -> PrecisionRecall:
    """Precision and recall of Kynkäänniemi et al. 2019 on raw coordinates, for points (m, d) and (n, d).

    A set covers the closed balls around its points that reach to their k-th nearest *other* point of that set: radius 0
    where more than k coincide. ValueError for k < 1, fewer than k + 1 points, other dimensions, values not finite.
    """
    k = at_least_one("k", k)
    generated = points("generated", generated, k + 1)
    reference = points("reference", reference, k + 1, generated.shape[1])
    return PrecisionRecall(_covered(generated, reference, k), _covered(reference, generated, k))


def mmd2(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of x (m, d) from the reference y (n, d): below 0 by chance if p = q.

    The kernel is exp(−|a − b|²/2h²). `bandwidth` is h; left out, h is the median distance (lower middle) over all pairs
    i < j of y, or of every ⌈n/4096⌉-th point of y, so that it does not depend on what is judged. ValueError for fewer
    than 2 points, other dimensions, values not finite, h not in (0, ∞).
    """
    x = points("x", x, 2)
    y = points("y", y, 2, x.shape[1])
    h = float(torch.pdist(y[:: math.ceil(len(y) / PAIRED)]).median()) if bandwidth is None else bandwidth
    positive("median distance within y" if bandwidth is None else "bandwidth", h)

    def mean(a: Tensor, b: Tensor, same: int = 0) -> float:
        total = sum(float((-(d / h).square() / 2).exp().sum()) for d in _distances(a, b))
        return (total - same) / (len(a) * len(b) - same)  # a point with itself counts 1 and is left out

    return mean(x, x, len(x)) + mean(y, y, len(y)) - 2 * mean(x, y)


class Efficiency(NamedTuple):
    """The natural logarithm of Eq. 17, and whether the error was too small to tell from rounding."""

    log: float
    floored: bool


def efficiency(estimates: Tensor, reference: Tensor | None, calls: float, floor: float = 16.0) -> Efficiency:
    """log[Σ_x |g|² / (Σ_x MSE · calls)] for independent estimates (N, *batch, d) of g (*batch, d), Eq. 17.

    MSE is the mean of |ĝ − g|² over N. With `reference=None` g is the estimates' mean and the MSE their variance (over
    N − 1), which hides a bias. `calls` are the denoiser calls of one estimate. √(Σ MSE / Σ|g|²) counts as at least
    `floor` machine epsilons of the coarser dtype; where estimates are small differences of large numbers, raise it.
    ValueError for shapes that do not fit, N < 2 without a reference, values not finite, g = 0, calls or floor ≤ 0.
    """
    positive("calls", calls)
    positive("floor", floor)
    ĝ, g = _estimates(estimates, reference, 2 if reference is None else 1)
    error = float(ĝ.var(0).sum() if reference is None else (ĝ - g).square().mean(0).sum())
    if not g.any():
        raise ValueError("reference (or the mean of estimates) is 0 everywhere; the gradient must not vanish")
    ε = max(torch.finfo(t.dtype).eps for t in (estimates, reference) if t is not None)
    relative, least = error / float(g.square().sum()), (floor * ε) ** 2
    return Efficiency(-math.log(max(relative, least) * calls), relative <= least)


def best_multiple(estimates: Tensor, reference: Tensor) -> Tensor:
    """c·ĝ with the one constant c = Σ⟨ĝ, g⟩ / Σ|ĝ|² that minimises Σ|cĝ − g|², for estimators of arbitrary scale.

    Shapes and errors as in `efficiency`; sums run over N and x. Then Σ MSE = (1 − r²) Σ|g|², r the cosine of all ĝ with
    g: the log efficiency cannot fall below −log(calls). A negative c says that the estimates point the wrong way.
    """
    ĝ, g = _estimates(estimates, reference, 1)
    if not ĝ.any():
        raise ValueError("estimates are 0 everywhere; they must not vanish")
    return ((ĝ * g).sum() / ĝ.square().sum() * ĝ).to(estimates)


def _covered(x: Tensor, centres: Tensor, k: int) -> float:
    """The share of rows of x within reach of the k-th neighbour of at least one of `centres`."""
    # The smallest value of a row is the exact 0 to the point itself, also among copies.
    radii = torch.cat([d.kthvalue(k + 1, dim=1).values for d in _distances(centres, centres)])
    return float(torch.cat([(d <= radii).any(1) for d in _distances(x, centres)]).double().mean())


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """|x_i − y_j| for some rows i at a time, from differences: |x|² − 2xy + |y|² loses the small ones."""
    for rows in x.split(max(1, BLOCK // len(y))):
        yield torch.cdist(rows, y, compute_mode="donot_use_mm_for_euclid_dist")


def _estimates(estimates: Tensor, reference: Tensor | None, least: int) -> tuple[Tensor, Tensor]:
    fits = isinstance(estimates, Tensor) and estimates.ndim >= 2 and len(estimates) >= least and estimates.numel() > 0
    ĝ = floats("estimates", estimates, fits, f"(N, *batch, d) with N >= {least}")
    if reference is None:
        return ĝ, ĝ.mean(0)
    return ĝ, floats("reference", reference, reference.shape == ĝ.shape[1:], f"{tuple(ĝ.shape[1:])}, as estimates[0]")
