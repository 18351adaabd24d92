import math

import pytest
import torch
from hypothesis import given, settings
from reference import levels, random_mixture, seeds

from msd_teach import IdealDenoiser, fractal, guided, karras_sigmas, product_denoiser, sample


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=seeds, bandwidth=levels, sigma=levels)
@settings(max_examples=50, deadline=None)
def test_equals_the_denoiser_of_the_closed_form_product(seed, bandwidth, sigma):
    """Invariant 2 of docs/invariants.md."""
    mixture, x, z = random_mixture(seed), draw(seed, 2), draw(seed + 1, 9, 2)
    got = product_denoiser(mixture.denoise, x, bandwidth)(z, sigma)
    torch.testing.assert_close(got, mixture.product(x, bandwidth).denoise(z, sigma), rtol=1e-10, atol=1e-10)


def test_bandwidth_and_sigma_for_each_point():
    mixture, x, z = random_mixture(0), draw(0, 5, 2), draw(1, 3, 5, 2)
    bandwidth, sigma = 0.1 + draw(2, 5).abs(), 0.1 + draw(3, 3).abs()
    got = product_denoiser(mixture.denoise, x, bandwidth)(z, sigma)
    for n in range(3):
        for b in range(5):
            one = mixture.product(x[b], float(bandwidth[b])).denoise(z[n, b], float(sigma[n]))
            torch.testing.assert_close(got[n, b], one, rtol=1e-10, atol=1e-10)


def test_limits_of_the_bandwidth():
    """Invariant 4 of docs/invariants.md: a wide kernel leaves p; a narrow one returns x, or the nearest datum."""
    mixture, x, z = random_mixture(0), draw(0, 2), draw(1, 9, 2)
    for wide in (1e8, math.inf):
        torch.testing.assert_close(product_denoiser(mixture.denoise, x, wide)(z, 0.7), mixture.denoise(z, 0.7))
    torch.testing.assert_close(product_denoiser(mixture.denoise, x, 1e-7)(z, 0.7), x.expand(9, 2))
    data = draw(2, 30, 2)
    nearest = data[(data - x).norm(dim=-1).argmin()].expand(9, 2)
    torch.testing.assert_close(product_denoiser(IdealDenoiser(data), x, 1e-7)(z, 0.7), nearest)


def test_guidance_and_product_commute():
    """Invariant 11 of docs/invariants.md."""
    c, u, x, z = random_mixture(0).denoise, random_mixture(1).denoise, draw(0, 9, 2), draw(1, 9, 2)
    outside = guided(product_denoiser(c, x, 0.4), product_denoiser(u, x, 0.4), 7.5)
    inside = product_denoiser(guided(c, u, 7.5), x, 0.4)
    torch.testing.assert_close(inside(z, 0.9), outside(z, 0.9), rtol=1e-12, atol=1e-12)


def test_an_ordinary_sampler_draws_from_the_product():
    mixture, x, bandwidth, n = fractal(), torch.tensor([0.3, 0.35], dtype=torch.float64), 0.1, 4000
    denoise = product_denoiser(mixture.denoise, x, bandwidth)
    start = mixture.denoise(x, bandwidth) + 5 * draw(0, n, 2)
    *_, y = sample(denoise, start, karras_sigmas(64, 1e-3, 5))
    truth = mixture.product(x, bandwidth)
    mean = truth.weights @ truth.means
    spread = truth.means - mean
    covariance = torch.einsum("k,kij->ij", truth.weights, truth.covariances + spread[:, :, None] * spread[:, None])
    assert ((y.mean(0) - mean).abs() < 5 * (covariance.diagonal() / n).sqrt()).all()
    torch.testing.assert_close(y.T.cov(), covariance, rtol=0.1, atol=0.05 * float(covariance.trace()))


@pytest.mark.parametrize(("bandwidth", "said"), [(0, "0"), (-1.0, "-1.0"), (math.nan, "nan")])
def test_bad_bandwidths_are_refused_at_once(bandwidth, said):
    with pytest.raises(ValueError, match=f"bandwidth is {said}; it must be > 0"):
        product_denoiser(random_mixture(0).denoise, torch.zeros(2), bandwidth)
    with pytest.raises(ValueError, match="bandwidth contains"):
        product_denoiser(random_mixture(0).denoise, torch.zeros(1, 2), torch.tensor([float(bandwidth)]))


@pytest.mark.parametrize("s", [-2.0, 0.5, 4.0, 7.5])
def test_a_guided_product_by_quadrature(s):
    """On a line, s E_c[y | z, x] + (1 − s) E_u[y | z, x] with both posteriors integrated over y on a fine grid."""
    cond, uncond = random_mixture(3, dimension=1, thinnest=0.2), random_mixture(4, dimension=1, thinnest=0.2)
    denoise = guided(cond.denoise, uncond.denoise, s)
    y = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    for λ, σ in ((0.1, 3.0), (0.3, 0.3), (1.0, 0.05), (2.0, 10.0)):
        x, z = (torch.randn(6, 1, generator=g, dtype=torch.float64) for _ in range(2))
        means = []
        for density in (cond, uncond):
            logits = density.log_prob(y[:, None])[None] - (y - z) ** 2 / (2 * σ**2) - (y - x) ** 2 / (2 * λ**2)
            means.append(logits.softmax(1) @ y)
        wanted = s * means[0] + (1 - s) * means[1]
        got = product_denoiser(denoise, x, λ)(z, σ)[:, 0]
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
