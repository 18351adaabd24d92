"""Second implementations that the tests compare with: slow, explicit and independent of the library."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from msd_teach import GaussianMixture


def random_mixture(seed: int, components: int = 5, dimension: int = 2, thinnest: float = 0.05) -> GaussianMixture:
    """A mixture with random weights, means about the origin, and covariances from round to thin."""
    g = torch.Generator().manual_seed(seed)
    uniform = {"generator": g, "dtype": torch.float64}
    weights = torch.rand(components, **uniform) + 0.1
    means = torch.randn(components, dimension, **uniform)
    axes, _ = torch.linalg.qr(torch.randn(components, dimension, dimension, **uniform))
    scales = thinnest + (1 - thinnest) * torch.rand(components, 1, dimension, **uniform)
    return GaussianMixture(weights, means, (axes * scales**2) @ axes.mT)


def normal_log_density(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """log N(x; μ, Σ) by a solve and a determinant, x (n, d)."""
    r = x - mean
    square = (r * torch.linalg.solve(covariance, r.mT).mT).sum(-1)
    return -(square + torch.logdet(covariance) + len(mean) * math.log(2 * math.pi)) / 2


def mixture_log_prob(mixture: GaussianMixture, x: Tensor, sigma: float) -> Tensor:
    """log p_σ(x), one component after another."""
    smooth = sigma**2 * torch.eye(x.shape[-1], dtype=x.dtype)
    terms = [
        w.log() + normal_log_density(x, m, c + smooth)
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    ]
    return torch.stack(terms).logsumexp(0)


def mean_shift_sum(data: Tensor, x: Tensor, bandwidth: float | Tensor) -> Tensor:
    """Σ N(x; yᵢ, λ²) yᵢ / Σ N(x; yᵢ, λ²), with every distance written out (Eq. 7, Eq. 16)."""
    squares = (x[:, None] - data[None]).flatten(2).square().sum(-1)
    level = torch.as_tensor(bandwidth, dtype=x.dtype).reshape(-1, 1)
    weights = (-squares / (2 * level**2)).softmax(-1)
    return (weights @ data.flatten(1)).reshape(x.shape)


def assert_slope(value: Callable[[], Tensor], parameters: list[Tensor], atol: float, h: float = 1e-6) -> None:
    """The gradient of a value of parameters in float64, along a random way, against a central difference."""
    gradients = torch.autograd.grad(value(), parameters)
    g = torch.Generator().manual_seed(2)
    way = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]
    ends: list[Tensor] = []
    with torch.no_grad():
        for step in (h, -2 * h):
            for p, v in zip(parameters, way, strict=True):
                p += step * v
            ends.append(value())
        for p, v in zip(parameters, way, strict=True):
            p += h * v
    slope = torch.stack([(d * v).sum() for d, v in zip(gradients, way, strict=True)]).sum()
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), slope, rtol=1e-6, atol=atol)


seeds = st.integers(0, 2**31 - 1)
levels = st.floats(-3.0, 1.0).map(lambda exponent: 10.0**exponent)  # noise levels and bandwidths, .001 to 10
