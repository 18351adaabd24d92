"""Chapter 02: a denoiser's noise prediction, Heun's step, density without its own datum, posterior covariance."""

from __future__ import annotations

import math

import torch

from ...denoisers import IdealDenoiser
from ...plane.mixture import GaussianMixture
from ._compare import Exercise, checker, compare


@checker
def noise_prediction(fn: Exercise) -> None:
    """Exercise 2.1: fn(denoise, z_t, alpha_bar) is ε̂ for z_t = √ᾱ y + √(1−ᾱ) n, against the score of z_t's density."""
    generator = torch.Generator().manual_seed(0)
    z_t = torch.randn(9, 2, dtype=torch.float64, generator=generator)
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.float64)
    covariances = 0.1 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    density = GaussianMixture(weights, means, covariances)
    for alpha_bar in (0.95, 0.5, 0.05):
        alpha, beta = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        want = -beta * GaussianMixture(weights, alpha * means, alpha_bar * covariances).score(z_t, beta)
        clean = density.denoise(z_t / alpha, beta / alpha)
        mistakes = {
            "z_t holds √ᾱ y, not y: the D* of Section 4.1 lacks its factor α.": (z_t - clean) / beta,
            "The denoiser expects z = z_t/√ᾱ and σ = √((1−ᾱ)/ᾱ).": (z_t - alpha * density.denoise(z_t, beta)) / beta,
            "Divide by the deviation of the noise, not by its variance.": want / beta,
        }
        compare(f"ᾱ = {alpha_bar:g}", fn(density.denoise, z_t, alpha_bar), want, 1e-9, mistakes)


@checker
def heun_step(fn: Exercise) -> None:
    """Exercise 2.2: fn(denoise, z, here, there) against the trapezium rule written for a Gaussian."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(9, 2, dtype=torch.float64, generator=generator)
    rate = 0.7  # D(z; σ) = s²z/(s² + σ²) with s² = 0.7 makes the drift σz/(s² + σ²)

    def denoise(z: torch.Tensor, sigma: float) -> torch.Tensor:
        return z * rate / (rate + sigma**2)

    for here, there in ((3.0, 2.0), (0.5, 0.1)):
        k, k_next, h = here / (rate + here**2), there / (rate + there**2), there - here
        mistakes = {
            "That is Euler's step; Heun averages two slopes.": z * (1 + h * k),
            "The second slope belongs to the predicted point, not to z.": z * (1 + h * (k + k_next) / 2),
            "The second slope belongs to the level `there`.": z * (1 + h * (k + k * (1 + h * k)) / 2),
            "The slopes are averaged: a factor ½ is missing.": z * (1 + h * (k + k_next * (1 + h * k))),
        }
        want = z * (1 + h * (k + k_next * (1 + h * k)) / 2)
        compare(f"σ = {here:g} → {there:g}", fn(denoise, z, here, there), want, 1e-9, mistakes)


@checker
def leave_one_out(fn: Exercise) -> None:
    """Exercise 2.3: fn(data, sigma) is log p_σ at every datum, p made of all others, against one mixture a datum."""
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(12, 2, dtype=torch.float64, generator=generator)
    for sigma in (1.0, 0.2, 0.01):
        want = torch.stack([_kernel_density(data[torch.arange(12) != i], sigma)(data[i]) for i in range(12)])
        everyone = torch.stack([_kernel_density(data, sigma)(y) for y in data])
        mistakes = {
            "Every datum still sees itself.": everyone,
            "There are M − 1 others, not M.": want + math.log(11 / 12),
            "The constant of N(·; y, σ²I) is missing, log(2πσ²) in the plane.": want + math.log(2 * math.pi * sigma**2),
        }
        compare(f"σ = {sigma:g}", fn(data, sigma), want, 1e-9, mistakes)


def _kernel_density(data: torch.Tensor, sigma: float):
    """log p_σ for points as data; a Gaussian too thin to matter stands for each point."""
    thin = 1e-24 * torch.eye(data.shape[1], dtype=torch.float64).expand(len(data), -1, -1)
    return lambda x: GaussianMixture(torch.ones(len(data)), data, thin).log_prob(x, sigma)


@checker
def posterior_covariance(fn: Exercise) -> None:
    """Exercise 2.4: fn(z, data, sigma), (n, d) to (n, d, d), against σ² ∂D*/∂z by automatic differentiation."""
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    z = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    denoise = IdealDenoiser(data)
    for sigma in (1.0, 0.3):
        slopes = [torch.autograd.functional.jacobian(lambda z, s=sigma: denoise(z, s), point) for point in z]
        want = sigma**2 * torch.stack([torch.as_tensor(slope) for slope in slopes])
        mean = denoise(z, sigma)
        off = (mean - z)[:, :, None] * (mean - z)[:, None]
        mistakes = {
            "Deviations are from the mean D(z; σ), not from z.": want + off,
            "That is the second moment: the mean is not subtracted.": want + mean[:, :, None] * mean[:, None],
            "That is ∂D/∂z: the factor σ² is missing.": want / sigma**2,
        }
        compare(f"σ = {sigma:g}", fn(z, data, sigma), want, 1e-9, mistakes)
