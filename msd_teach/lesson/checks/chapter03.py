"""Chapter 03: the target of SDS from a noise predictor, the curvature between two modes, the cloud at the end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...plane.mixture import GaussianMixture
from ._compare import Exercise, checker, compare


@checker
def sds_target(fn: Exercise) -> None:
    """Exercise 3.1: fn(predict, x, n, alpha_bar) is D(x + σn; σ), against a mixture whose noise predictor is exact."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    mixture = GaussianMixture(torch.tensor([0.7, 0.3]), means, 0.1 * torch.eye(2).expand(2, 2, 2))
    x, n = torch.randn(2, 9, 2, dtype=torch.float64, generator=generator)

    def predict(z_t: Tensor, alpha_bar: float) -> Tensor:
        alpha, beta = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        return (z_t - alpha * mixture.denoise(z_t / alpha, beta / alpha)) / beta

    for alpha_bar in (0.95, 0.5, 0.05):
        alpha, beta = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        sigma = beta / alpha
        seen = predict(alpha * x + beta * n, alpha_bar)
        mistakes = {
            "The injected noise is not subtracted.": x - sigma * seen,
            "The deviation of the noise around x is σ = σ_t/α, not σ_t.": x - beta * (seen - n),
            "The sign: the target lies against the direction of ε̂ − n.": x + sigma * (seen - n),
            "The network was trained on z_t = √ᾱ x + √(1−ᾱ) n, not on x + σn.": x
            - sigma * (predict(x + sigma * n, alpha_bar) - n),
            "The noise in z_t has the deviation √(1−ᾱ), not 1 − ᾱ.": x
            - sigma * (predict(alpha * x + beta**2 * n, alpha_bar) - n),
        }
        compare(
            f"ᾱ = {alpha_bar:g}", fn(predict, x, n, alpha_bar), mixture.denoise(x + sigma * n, sigma), 1e-9, mistakes
        )


@checker
def sds_curvature(fn: Exercise) -> None:
    """Exercise 3.2: fn(a, s, sigma), against a second difference of the averaged logarithm."""
    for a, s, σ in ((1.0, 0.0, 0.7), (1.0, 0.3, 0.5), (0.8, 0.6, 1.2)):
        v = s**2 + σ**2
        mistakes = {
            "That is the curvature of −σ² log p_σ itself; it is not averaged over n.": σ**2 * (1 / v - (a / v) ** 2),
            "The components of p_σ have the variance s² + σ².": _curvature(a, σ, σ, σ),
            "The second blur is σ, not √(s² + σ²).": _curvature(a, math.sqrt(v), math.sqrt(v), σ),
            "The factor σ² is missing.": _curvature(a, math.sqrt(v), σ, 1.0),
        }
        compare(f"a = {a:g}, s = {s:g}, σ = {σ:g}", fn(a, s, σ), _curvature(a, math.sqrt(v), σ, σ), 1e-5, mistakes)


def _curvature(a: float, width: float, blur: float, factor: float) -> float:
    """Second difference at 0 of −factor² E log p(· + blur n), p made of N(±a, width²)."""
    n = torch.linspace(-9, 9, 6001, dtype=torch.float64)
    h = 1e-3

    def averaged(x: float) -> Tensor:
        z = (x + blur * n)[:, None] + torch.tensor([-a, a], dtype=torch.float64)
        return (-(n**2) / 2).softmax(0) @ (-(z**2) / (2 * width**2)).logsumexp(-1)

    return float(-(factor**2) * (averaged(h) - 2 * averaged(0.0) + averaged(-h)) / h**2)


@checker
def stationary_covariance(fn: Exercise) -> None:
    """Exercise 3.3: fn(H, C, eta), against many steps of the recursion S ← (I − ηH) S (I − ηH) + η²C."""
    generator = torch.Generator().manual_seed(2)
    for d, eta in ((2, 0.5), (3, 1.7)):
        axes = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q
        rates = 0.2 + 0.8 * torch.rand(d, dtype=torch.float64, generator=generator)
        root = torch.randn(d, d, dtype=torch.float64, generator=generator)
        H, C = (axes * rates) @ axes.mT, root @ root.mT
        kept = torch.eye(d, dtype=torch.float64) - eta * H
        want = torch.zeros_like(C)
        for _ in range(2000):
            want = kept @ want @ kept + eta**2 * C
        flow = axes @ (eta * (axes.mT @ C @ axes) / (rates[:, None] + rates)) @ axes.mT
        mistakes = {
            "That is the limit of small steps; the term η²HSH is missing.": flow,
            "The scatter enters with η², not with η.": want / eta,
            "That is the scatter of one step, not of the long run.": eta**2 * C,
            "That treats the directions as independent: C need not be diagonal where H is.": axes
            @ torch.diag((axes.mT @ want @ axes).diagonal())
            @ axes.mT,
        }
        compare(f"{d} dimensions, η = {eta:g}", fn(H, C, eta), want, 1e-9, mistakes)
