"""Chapter 05: steps that Euler needs, Heun's factor, Strang splitting, a clock for the noised kernel."""

from __future__ import annotations

import math

import torch

from ...sampling import karras_sigmas, solver_step
from ._compare import Exercise, checker, compare


@checker
def steps_needed(fn: Exercise) -> None:
    """Exercise 5.1: fn(bandwidth, sigma_min, sigma_max), the least Karras steps with all |1 − g| ≤ 1."""
    for bandwidth, low, high in ((2.0, 0.1, 5.0), (0.3, 0.002, 5.0), (0.1, 0.01, 3.0)):
        want = _least_steps(2 * bandwidth**2, low, high)
        mistakes = {
            "From g = 1 on Euler oscillates; it explodes from g = 2 on.": _least_steps(bandwidth**2, low, high),
            "(M5.3) is a bound for the best grid; this one needs more.": math.ceil(high**2 / (4 * bandwidth**2)),
            "That many steps are still unstable; one more is not.": want - 1,
        }
        name = f"λ = {bandwidth:g}, σ from {high:g} to {low:g}"
        compare(name, fn(bandwidth, low, high), want, 0.0, mistakes)


def _least_steps(limit: float, low: float, high: float) -> int:
    """The least number of steps for which σ_i(σ_i − σ_{i+1}) ≤ limit everywhere."""

    def excess(steps: int) -> bool:
        sigmas = karras_sigmas(steps, low, high)
        return bool((sigmas[:-1] * (sigmas[:-1] - sigmas[1:]) > limit).any())

    bad, good = 0, 2**20
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (middle, good) if excess(middle) else (bad, middle)
    return good


@checker
def heun_factor(fn: Exercise) -> None:
    """Exercise 5.2: fn(here, there, bandwidth), the factor of z − x in a Heun step, against the library's step."""
    one = torch.ones((), dtype=torch.float64)
    for here, there, bandwidth in ((5.0, 4.9, 0.5), (2.0, 1.2, 0.7), (0.3, 0.1, 1.0)):
        rate, step = here / bandwidth**2, here - there

        def kernel(z: torch.Tensor, sigma: float | torch.Tensor, bandwidth: float = bandwidth) -> torch.Tensor:
            return z - (sigma / bandwidth) ** 2 * z  # the denoiser whose flow is the kernel's term, x = 0

        want = solver_step(kernel, one, here, there, "heun")
        mistakes = {
            "That is Euler's factor.": 1 - step * rate,
            "The second slope is taken at the level `there`, with a rate of its own.": 1
            - step * rate
            + (step * rate) ** 2 / 2,
            "The second slope belongs to the predicted point.": 1 - step * (rate + there / bandwidth**2) / 2,
        }
        compare(f"σ = {here:g} → {there:g}, λ = {bandwidth:g}", fn(here, there, bandwidth), want, 1e-9, mistakes)


@checker
def strang(fn: Exercise) -> None:
    """Exercise 5.3: fn(denoise, x, bandwidth, sigmas, z), against kernel flows that are written out for a Gaussian."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 5, 2, dtype=torch.float64, generator=generator)
    sigmas = torch.tensor([2.0, 1.1, 0.4, 0.1], dtype=torch.float64)

    def denoise(z: torch.Tensor, sigma: float) -> torch.Tensor:
        return z * 0.7 / (0.7 + sigma**2)

    for bandwidth in (2.0, 0.6):
        mistakes = {
            "That is Lie's splitting, Eq. 15.": _split(denoise, x, bandwidth, sigmas, z, 0.0, 1.0),
            "The kernel's second half step, after the model's, is missing.": _split(
                denoise, x, bandwidth, sigmas, z, 0.5, 0.0
            ),
            "Two half steps of the kernel are one whole one, not two.": _split(
                denoise, x, bandwidth, sigmas, z, 1.0, 1.0
            ),
        }
        want = _split(denoise, x, bandwidth, sigmas, z, 0.5, 0.5)
        compare(f"λ = {bandwidth:g}", fn(denoise, x, bandwidth, sigmas, z), want, 1e-9, mistakes)


def _split(
    denoise: Exercise,
    x: torch.Tensor,
    bandwidth: float,
    sigmas: torch.Tensor,
    z: torch.Tensor,
    before: float,
    after: float,
) -> torch.Tensor:
    """Steps of model and kernel in turn, with shares of the kernel's time before and after the model."""
    times = (sigmas[:-1].square() - sigmas[1:].square()) / 2 / bandwidth**2
    for i, time in enumerate(times):
        z = torch.lerp(x, z, (-before * time).exp())
        z = solver_step(denoise, z, float(sigmas[i]), float(sigmas[i + 1]), "heun")
        z = torch.lerp(x, z, (-after * time).exp())
    return z


@checker
def noised_kernel_clock(fn: Exercise) -> None:
    """Exercise 5.4: fn(sigma, bandwidth) up to a constant, against ∫ λ² σ dσ/(λ² + σ²) by quadrature."""
    half = torch.linspace(-0.5, 0.5, 4001, dtype=torch.float64)
    for low, high, bandwidth in ((0.0, 1.0, 0.3), (0.2, 3.0, 1.0)):
        sigma = (low + high) / 2 + (high - low) * half
        want = torch.trapezoid(bandwidth**2 * sigma / (bandwidth**2 + sigma**2), sigma)
        mistakes = {
            "That is the heat clock, for the clean kernel.": (high**2 - low**2) / 2,
            "The exponential step divides by λ²: t needs a factor λ².": want / bandwidth**2,
            "A factor ½ is missing: d ln(λ² + σ²) = 2σ dσ/(λ² + σ²).": 2 * want,
        }
        got = fn(high, bandwidth) - fn(low, bandwidth)
        compare(f"σ = {low:g} to {high:g}, λ = {bandwidth:g}", got, want, 1e-6, mistakes)
