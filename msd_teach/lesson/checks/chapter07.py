"""Chapter 07: noise in the product's input, samples that beat a call, autoguidance in an interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...product import product_denoiser
from ._compare import Exercise, checker, compare


@checker
def noise_share(fn: Exercise) -> None:
    """Exercise 7.1: fn(bandwidth, sigma, own), against what the library's product denoiser hands to the model."""
    for bandwidth, sigma, own in ((0.3, 0.3, 0.3), (0.3, 0.9, 0.0), (0.5, 1.2, 0.2), (0.2, 0.1, 1.0)):
        of_z, claimed = _asked(bandwidth, sigma, torch.tensor([[0.0], [sigma]]))
        of_x, _ = _asked(bandwidth, sigma, torch.tensor([[own], [0.0]]))
        want = math.hypot(of_z, of_x) / claimed
        share = bandwidth / math.hypot(bandwidth, sigma)
        mistakes = {
            "That is a clean x, τ = 0; x has noise of its own.": share,
            "That is the variance; the share is a ratio of standard deviations.": want**2,
            "Independent noises add their variances, not their standard deviations.": (of_z + of_x) / claimed,
            "Divide by the level that the product denoiser claims, not by σ.": want * claimed / sigma,
        }
        mistakes = {hint: wrong for hint, wrong in mistakes.items() if abs(wrong - want) > 1e-6}
        compare(f"λ = {bandwidth:g}, σ = {sigma:g}, τ = {own:g}", fn(bandwidth, sigma, own), want, 1e-6, mistakes)


def _asked(bandwidth: float, sigma: float, noise: Tensor) -> tuple[float, float]:
    """Where `noise` (in x, in z) moves the model's input, and the level that the model is told."""
    heard: list[tuple[float, float]] = []

    def listen(z: Tensor, sigma: float | Tensor) -> Tensor:
        heard.append((float(z), float(sigma)))
        return z

    x, z = noise.double()
    product_denoiser(listen, x, bandwidth)(z, sigma)
    return heard[0]


@checker
def break_even(fn: Exercise) -> None:
    """Exercise 7.2: fn(call_error, bias, variance), against the first N in a plain search."""
    for error, bias, variance in ((0.5, 0.1, 2.3), (1.0, 0.0, 4.0), (0.9, 0.85, 1.1), (0.8, 0.1, 0.01)):
        want = next(n for n in range(1, 10_000) if bias**2 + variance / n < error**2 - 1e-12)
        threshold = variance / (error**2 - bias**2)
        mistakes = {
            "Squared errors add up: compare b² + v/N with e².": math.floor(variance / (error - bias) ** 2) + 1,
            "N is the smallest whole number above the threshold.": threshold,
            "`variance` is v already; do not square it.": math.floor(variance**2 / (error**2 - bias**2)) + 1,
            "At equality the mean of N samples is not yet better.": math.ceil(threshold),
        }
        mistakes = {hint: wrong for hint, wrong in mistakes.items() if wrong != want}
        compare(f"e = {error:g}, b = {bias:g}, v = {variance:g}", fn(error, bias, variance), want, 0.0, mistakes)
    for error, bias in ((0.3, 0.3), (0.2, 0.5)):
        never = fn(error, bias, 1.0)
        assert never == math.inf, f"e = {error}, b = {bias}: no N is enough; return math.inf, not {never}"


@checker
def autoguided(fn: Exercise) -> None:
    """Exercise 7.3: fn(strong, weak, scale, low, high), with numbers and with one level for each item."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    sigma = torch.tensor([0.01, 0.1, 0.2, 0.4, 0.5, 3.0], dtype=torch.float64)
    scale, low, high = 2.5, 0.1, 0.4

    def strong(z: Tensor, sigma: float | Tensor) -> Tensor:
        s = torch.as_tensor(sigma, dtype=z.dtype)
        return z / (1 + s.reshape(s.shape + (1,) * (z.ndim - s.ndim)) ** 2)

    def weak(z: Tensor, sigma: float | Tensor) -> Tensor:
        return 0.7 * strong(z, sigma) - 0.1

    inside = ((sigma >= low) & (sigma <= high))[:, None]
    g, b = strong(z, sigma), weak(z, sigma)
    want = torch.where(inside, b + scale * (g - b), g)
    mistakes = {
        "Outside the interval it is the strong network, s = 1.": torch.where(inside, b + scale * (g - b), b),
        "Guide inside the interval, not outside.": torch.where(inside, g, b + scale * (g - b)),
        "Guide away from the weak network: weak + s·(strong − weak).": torch.where(inside, g + scale * (b - g), g),
        "s = 1 must be the strong network: that is 1 + s.": torch.where(inside, g + scale * (g - b), g),
    }
    denoise: Exercise = fn(strong, weak, scale, low, high)
    if not callable(denoise):
        raise AssertionError(f"autoguided returned {denoise!r}; it must be a denoiser, a function of (z, sigma)")
    for i, level in enumerate(sigma.tolist()):
        wrong = {hint: value[i] for hint, value in mistakes.items() if (value[i] - want[i]).abs().max() > 1e-9}
        compare(f"σ = {level:g}", denoise(z[i : i + 1], level)[0], want[i], 1e-6, wrong)
    compare("one σ for each item", denoise(z, sigma), want, 1e-6, mistakes)
