"""Chapter 04: the price of pre-drawn samples, the denoiser of the product, the efficiency of one sample."""

from __future__ import annotations

import torch

from ...plane.mixture import GaussianMixture
from ...product import product_denoiser
from ._compare import Exercise, checker, compare


@checker
def sample_share(fn: Exercise) -> None:
    """Exercise 4.1: fn(d, bandwidth) is the limit of N_eff/N at x = 0 for p = N(0, I) in d dimensions."""
    for d, λ in ((1, 0.3), (2, 0.3), (2, 1.0), (64, 0.5)):
        want = _share(d, λ)
        mistakes = {
            "The square of N(u; λ²I) is (4πλ²)^(−d/2) N(u; λ²I/2): its variance is λ²/2, not λ².": (
                λ * 2**0.5 / (1 + λ**2) ** 0.5
            )
            ** d,
            "Every dimension contributes a factor.": _share(1, λ),
            "p_λ has the variance 1 + λ².": (λ * (2 + λ**2) ** 0.5) ** d,
            "That is N/N_eff, the other way up.": 1 / want,
        }
        compare(
            f"d = {d}, λ = {λ:g} (relative)", fn(d, λ) / want, 1.0, 1e-9, {k: v / want for k, v in mistakes.items()}
        )


def _share(d: int, λ: float) -> float:
    return (λ * (2 + λ**2) ** 0.5 / (1 + λ**2)) ** d


@checker
def two_looks(fn: Exercise) -> None:
    """Exercise 4.2: fn(denoise, z, sigma, x, bandwidth), against the closed-form product of a random mixture."""
    generator = torch.Generator().manual_seed(4)
    root = 0.5 * torch.randn(5, 2, 2, dtype=torch.float64, generator=generator)
    means = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    mixture = GaussianMixture(torch.ones(5), means, root @ root.mT + 0.01 * torch.eye(2))
    x, z = torch.randn(2, 9, 2, dtype=torch.float64, generator=generator)
    x = x[0]
    for λ, σ in ((0.5, 0.5), (0.1, 2.0), (1.5, 0.2)):
        want = mixture.product(x, λ).denoise(z, σ)
        both = (λ**2 * z + σ**2 * x) / (λ**2 + σ**2)
        swapped = (σ**2 * z + λ**2 * x) / (λ**2 + σ**2)
        level = λ * σ / (λ**2 + σ**2) ** 0.5
        mistakes = {
            "That is the sum of the two scores, as a denoiser.": mixture.denoise(z, σ) + σ**2 / λ**2 * (x - z),
            "The more precise look gets the larger weight: z is weighted by λ².": mixture.denoise(swapped, level),
            "Two looks together are less noisy than each; the noise level is not σ.": mixture.denoise(both, σ),
            "Precisions add: 1/σ² + 1/λ². You added variances.": mixture.denoise(both, (λ**2 + σ**2) ** 0.5),
            "That is the variance of the two looks together; the denoiser takes a deviation.": mixture.denoise(
                both, level**2
            ),
        }
        compare(f"λ = {λ:g}, σ = {σ:g}", fn(mixture.denoise, z, σ, x, λ), want, 1e-9, mistakes)
        compare(
            "  and the library's", fn(mixture.denoise, z, σ, x, λ), product_denoiser(mixture.denoise, x, λ)(z, σ), 1e-9
        )


@checker
def one_sample_efficiency(fn: Exercise) -> None:
    """Exercise 4.3: fn(denoise, x, bandwidth, calls) for x (d,), against the closed-form product of a mixture."""
    generator = torch.Generator().manual_seed(5)
    root = 0.4 * torch.randn(6, 3, 3, dtype=torch.float64, generator=generator)
    means = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    mixture = GaussianMixture(torch.ones(6), means, root @ root.mT + 0.01 * torch.eye(3))
    x = torch.tensor([0.4, -0.2, 0.9], dtype=torch.float64)
    for λ, calls in ((1.0, 1), (0.3, 64)):
        product = mixture.product(x, λ)
        centre = product.weights @ product.means
        within = product.covariances.diagonal(dim1=1, dim2=2).sum(-1)
        variance = product.weights @ (within + (product.means - centre).square().sum(-1))
        want = float((centre - x).square().sum() / (variance * calls))
        mistakes = {
            "The variance is λ² tr ∂D/∂x; λ² is missing.": want * λ**2,
            "Divide by the number of calls.": want * calls,
            "The signal is |m|², squared.": want / float((centre - x).norm()),
        }
        compare(f"λ = {λ:g}, {calls} calls", fn(mixture.denoise, x, λ, calls), want, 1e-9 * max(1.0, want), mistakes)


@checker
def log_stationary(fn: Exercise) -> None:
    """Exercise 4.4: fn(mixture, y, bandwidth) is, up to a constant, the log-density that single draws converge to."""
    mixture = GaussianMixture(
        torch.tensor([0.7, 0.3]), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.2 * torch.eye(2).repeat(2, 1, 1)
    )
    y = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for λ in (0.3, 1.5):
        sharp, smooth = mixture.log_prob(y), mixture.log_prob(y, λ)
        mistakes = {
            "That is p; going to y without adding noise of size λ to it is no Gibbs sampler of p.": sharp,
            "That is p_λ; every state of the chain is a draw from p times a kernel.": smooth,
            "Close: p(x) q(y|x) has 1/p_λ(x) in it, and π must cancel that.": sharp - smooth,
            "That is the limit λ → 0 alone.": 2 * sharp,
        }
        mistakes = {hint: wrong - wrong.mean() for hint, wrong in mistakes.items()}
        got, want = torch.as_tensor(fn(mixture, y, λ)), sharp + smooth
        compare(f"λ = {λ:g}, up to a constant", got - got.mean(), want - want.mean(), 1e-9, mistakes)
