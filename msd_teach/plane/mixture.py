"""The Gaussian mixture, where density, score, denoiser and product with a kernel are exact at every noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..tensors import at_least_one, noise_like, per_item

TABLE = 2**18  # values of a (points, components) table held at once: 2 MiB, what a core's cache holds


class GaussianMixture:
    """p(y) = Σ w_k N(y; μ_k, Σ_k) with its smoothed forms p_σ = p * N(0, σ²I), σ ≥ 0.

    `weights` (K,) are normalised to sum to one; `means` (K, d) and `covariances` (K, d, d) keep these names. Points
    have shape (*batch, d); sigma is a number or a tensor whose shape is a prefix of theirs. Arithmetic is in float64
    (the precision matrices of thin components exhaust float32), in tables of bounded size; results have the dtype and
    device of the input; what describes the mixture lies on the CPU.

    Raises:
        ValueError: shapes that do not fit, weights ≤ 0, covariances that are not symmetric positive definite.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        covariances, rounding = doubles("covariances", covariances)
        (weights, _), (means, _) = doubles("weights", weights), doubles("means", means)
        _check(weights, means, covariances, asymmetry=max(1e-9, 4 * means.shape[-1:].numel() * rounding))
        covariances = (covariances + covariances.mT) / 2
        self.weights, self.means, self.covariances = weights / weights.sum(), means, covariances
        self._centre = self.weights @ means  # the origin of the arithmetic: quadratic features cancel far from theirs
        # Σ_k = Q diag(e) Qᵀ makes Σ_k + σ²I = Q diag(e + σ²) Qᵀ: one factorisation serves every noise level.
        self._variances, self._axes = torch.linalg.eigh(covariances)

    def __repr__(self) -> str:
        return f"GaussianMixture({len(self.weights)} components in {self.means.shape[1]} dimensions)"

    def log_prob(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """log p_σ(x) in nats: (*batch, d) to (*batch,)."""
        self._check_points(x)
        parts = [self._log_joint(y, s).logsumexp(-1) for y, s in self._rows(x, sigma)]
        return torch.cat(parts).to(x.dtype).reshape(x.shape[:-1])

    def score(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """∇ log p_σ(x), of the shape of x."""
        return self._expect(x, sigma, lambda e, s: -1 / (e + s**2), keep_mean=False)

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """E[y | z] for z = y + σn, of the shape of z: every component's posterior mean, weighted by its posterior."""
        return self._expect(z, sigma, lambda e, s: e / (e + s**2), keep_mean=True)

    def sample(self, n: int, sigma: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws from p_σ, (n, d) in float64 on the CPU; ValueError for an n that is not 1, 2, …"""
        n = at_least_one("n", n)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        level = per_item(sigma, self.means)
        scaled = (self._variances[k] + level**2).sqrt() * noise_like(self.means[k], generator)
        slices = zip(
            k.split(TABLE // len(self._axes[0]) ** 2 + 1),
            scaled.split(TABLE // len(self._axes[0]) ** 2 + 1),
            strict=True,
        )
        return self.means[k] + torch.cat([(self._axes[part] @ s[..., None])[..., 0] for part, s in slices])

    def product(self, x: Tensor, bandwidth: float) -> GaussianMixture:
        """The density ∝ p(y) N(y; x, λ²I) for one point x of shape (d,), again a mixture; `bandwidth` is λ (Eq. 8).

        Weights ∝ w_k N(x; μ_k, Σ_k + λ²I), precisions Σ_k⁻¹ + I/λ²; components whose weight underflows are left out.
        """
        x, _ = doubles("x", x)
        if x.shape != self.means.shape[1:]:
            raise ValueError(f"x has shape {tuple(x.shape)}; it must be one point, {tuple(self.means.shape[1:])}")
        λ = per_item(bandwidth, x[0], "bandwidth", positive=True)
        if not (x.isfinite().all() and 0 < λ**2 < math.inf):
            raise ValueError(f"x, bandwidth are {x.tolist()}, {float(λ)}; x and the bandwidth's square must be finite")
        shrink = λ**2 / (self._variances + λ**2)
        means = x + _along(self._axes, shrink, self.means - x)
        weights = self._log_joint((x - self._centre)[None], λ)[0].softmax(-1)
        covariances = (self._axes * (self._variances * shrink)[:, None]) @ self._axes.mT
        alive = weights > 0
        return GaussianMixture(weights[alive], means[alive], covariances[alive])

    def _check_points(self, x: Tensor) -> None:
        d = self.means.shape[1]
        if not isinstance(x, Tensor):
            raise ValueError(f"points are a {type(x).__name__}; they must be a torch tensor (*batch, {d})")
        if x.shape[-1:] != (d,) or not x.is_floating_point():
            raise ValueError(f"points have shape {tuple(x.shape)}, {x.dtype}; their last axis must be {d}, of floats")

    def _rows(self, x: Tensor, sigma: float | Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Slices of x − centre as (m, d) float64 with their σ: () where all points share one, else (m, 1, 1)."""
        K, d = self.means.shape
        points = x.double() - self._centre.to(x.device)
        level = per_item(sigma, points)
        if level.ndim and level.shape[-1] != 1:
            raise ValueError(f"sigma has shape {tuple(level.shape)}; it may not vary within a point")
        points = points.reshape(-1, d)
        if level.numel() == 1:
            size = max(1, TABLE // (K + d**2))
            yield from ((part, level.reshape(())) for part in points.split(size))
        else:
            size = max(1, TABLE // (K * d))
            levels = level.expand(*x.shape[:-1], 1).reshape(-1, 1, 1)
            yield from zip(points.split(size), levels.split(size), strict=True)

    def _log_joint(self, y: Tensor, s: Tensor) -> Tensor:
        """log w_k N(y; μ_k, Σ_k + σ²I), (m, K), with y and μ_k relative to the centre."""
        weights, μ, e, Q = self._on(y.device)
        v = e + s**2
        constant = weights.log() - (2 * math.pi * v).log().sum(-1) / 2
        if s.ndim:
            return constant - (_residuals(Q, y, μ).square() / v).sum(-1) / 2
        # With one σ for all, the exponents of all components are one product of quadratic features: −½yᵀPy + μᵀPy + c.
        P = (Q / v[:, None]) @ Q.mT
        Pμ = (P @ μ[..., None])[..., 0]
        coefficients = torch.cat([-P.flatten(1) / 2, Pμ, (constant - (Pμ * μ).sum(-1) / 2)[:, None]], dim=-1)
        features = torch.cat([(y[:, :, None] * y[:, None]).flatten(1), y, torch.ones_like(y[:, :1])], dim=-1)
        return features @ coefficients.mT

    def _expect(
        self, x: Tensor, sigma: float | Tensor, gain: Callable[[Tensor, Tensor], Tensor], keep_mean: bool
    ) -> Tensor:
        """Σ_k p(k|x) [μ_k (if kept) + Q diag(gain(e, σ)) Qᵀ (x − μ_k)]."""
        self._check_points(x)
        _, μ, e, Q = self._on(x.device)
        parts = []
        for y, s in self._rows(x, sigma):
            posterior = self._log_joint(y, s).softmax(-1)
            g = gain(e, s)
            if s.ndim:
                along = (posterior[..., None] * g * _residuals(Q, y, μ)).flatten(1)
                mixed = along @ Q.mT.flatten(0, 1)
            else:
                A = (Q * g[:, None]) @ Q.mT
                mixed = ((posterior @ A.flatten(1)).unflatten(-1, A.shape[1:]) @ y[..., None])[..., 0]
                mixed = mixed - posterior @ (A @ μ[..., None])[..., 0]
            parts.append(mixed + posterior @ μ + self._centre.to(y.device) if keep_mean else mixed)
        return torch.cat(parts).to(x.dtype).reshape(x.shape)

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(t.to(device) for t in (self.weights, self.means - self._centre, self._variances, self._axes))


def doubles(name: str, values: object) -> tuple[Tensor, float]:
    """Real numbers as float64 on the CPU, and the rounding of the type that they came in."""
    try:
        t = values.cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {values!r}; it must be numbers") from error
    if t.is_complex():
        raise ValueError(f"{name} has dtype {t.dtype}; it must be real")
    return t.to(torch.float64, copy=True), torch.finfo(t.dtype).eps if t.is_floating_point() else 0.0


def _residuals(Q: Tensor, y: Tensor, μ: Tensor) -> Tensor:
    """Qᵀ(y − μ_k) for every point and component, (m, K, d)."""
    K, d = μ.shape
    return (y @ Q.movedim(1, 0).reshape(d, K * d)).unflatten(-1, (K, d)) - (μ[:, None] @ Q)[:, 0]


def _along(Q: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Q diag(g) Qᵀ v for every component, (K, d)."""
    return (Q @ (g[..., None] * (Q.mT @ v[..., None])))[..., 0]


def _check(weights: Tensor, means: Tensor, covariances: Tensor, asymmetry: float) -> None:
    K, d = means.shape if means.ndim == 2 else (0, 0)
    if K == 0 or d == 0 or weights.shape != (K,) or covariances.shape != (K, d, d):
        shapes = ", ".join(str(tuple(t.shape)) for t in (weights, means, covariances))
        raise ValueError(f"weights, means, covariances have shapes {shapes}; they must be (K,), (K, d), (K, d, d)")
    for name, t in (("weights", weights), ("means", means), ("covariances", covariances)):
        if not t.isfinite().all():
            raise ValueError(f"{name} contains {t[~t.isfinite()][0].item()}; all values must be finite")
    if not (weights > 0).all() or weights.sum().isinf():
        raise ValueError(f"weights contains {weights.min().item()}; every weight must be > 0, their sum finite")
    largest = covariances.abs().amax((1, 2))
    k = int(((covariances - covariances.mT).abs().amax((1, 2)) - asymmetry * largest).argmax())
    if not torch.allclose(covariances[k], covariances[k].mT, rtol=0, atol=asymmetry * float(largest[k])):
        raise ValueError(f"covariances[{k}] is {covariances[k].tolist()}; it must be symmetric")
    lowest = torch.linalg.eigvalsh(covariances)[:, 0]
    if not (lowest > 0).all():
        k = int(lowest.argmin())
        raise ValueError(f"covariances[{k}] has the eigenvalue {lowest[k].item()}; it must be positive definite")
