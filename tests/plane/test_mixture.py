import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from reference import levels, mixture_log_prob, random_mixture, seeds

from msd_teach import GaussianMixture, fractal


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=seeds, sigma=levels)
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("dimension", [1, 2, 3, 12])
def test_log_prob_is_the_sum_over_components(dimension, seed, sigma):
    mixture, x = random_mixture(seed, dimension=dimension), 2 * draw(seed, 7, dimension)
    torch.testing.assert_close(mixture.log_prob(x, sigma), mixture_log_prob(mixture, x, sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_density_integrates_to_one(sigma):
    mixture = random_mixture(3, thinnest=0.2)
    axis = torch.linspace(-9, 9, 721, dtype=torch.float64)
    mass = mixture.log_prob(torch.cartesian_prod(axis, axis), sigma).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 1e-9


@given(seed=seeds, sigma=levels)
@settings(max_examples=30, deadline=None)
def test_score_is_the_gradient_of_log_prob(seed, sigma):
    mixture, x = random_mixture(seed), draw(seed, 4, 2).requires_grad_()
    for level in (0.0, sigma):
        (gradient,) = torch.autograd.grad(mixture.log_prob(x, level).sum(), x)
        torch.testing.assert_close(mixture.score(x.detach(), level), gradient, rtol=1e-9, atol=1e-9)


@given(seed=seeds, sigma=levels)
@settings(max_examples=30, deadline=None)
def test_denoiser_obeys_tweedie(seed, sigma):
    mixture, z = random_mixture(seed), draw(seed, 6, 2)
    torch.testing.assert_close(
        mixture.denoise(z, sigma), z + sigma**2 * mixture.score(z, sigma), rtol=1e-10, atol=1e-10
    )


@given(seed=seeds, bandwidth=levels)
@settings(max_examples=30, deadline=None)
def test_mean_shift_lands_on_the_mean_of_the_product(seed, bandwidth):
    """Invariant 1 of docs/invariants.md: D(x; λ) is the mean of p·kernel, λ² ∂D/∂x its covariance."""
    mixture, x = random_mixture(seed), draw(seed, 2)
    product = mixture.product(x, bandwidth)
    mean = product.weights @ product.means
    torch.testing.assert_close(mixture.denoise(x, bandwidth), mean, rtol=1e-10, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(lambda y: mixture.denoise(y, bandwidth), x)
    spread = product.means - mean
    covariance = torch.einsum("k,kij->ij", product.weights, product.covariances + spread[:, :, None] * spread[:, None])
    torch.testing.assert_close(bandwidth**2 * jacobian, covariance, rtol=1e-7, atol=1e-10)


def test_product_is_density_times_kernel():
    mixture, x, bandwidth = random_mixture(11), draw(11, 2), 0.7
    y = draw(12, 50, 2)
    kernel = -(y - x).square().sum(-1) / (2 * bandwidth**2)
    constant = mixture.product(x, bandwidth).log_prob(y) - mixture.log_prob(y) - kernel
    assert constant.std() < 1e-10


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_sigma_for_each_point_equals_one_call_for_each(seed):
    mixture, x = random_mixture(seed), draw(seed, 3, 5, 2)
    sigma = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for method in (mixture.log_prob, mixture.score, mixture.denoise):
        flat = zip(x.reshape(15, 2), sigma.flatten(), strict=True)
        one_by_one = torch.stack([method(point, float(s)) for point, s in flat]).unflatten(0, (3, 5))
        torch.testing.assert_close(method(x, sigma), one_by_one, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(method(x, sigma[:, :1])[:, 0], one_by_one[:, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_samples_have_the_mixtures_moments(sigma):
    mixture, n = random_mixture(5), 400_000
    y = mixture.sample(n, sigma, torch.Generator().manual_seed(0))
    mean = mixture.weights @ mixture.means
    spread = mixture.means - mean
    covariance = torch.einsum("k,kij->ij", mixture.weights, mixture.covariances + spread[:, :, None] * spread[:, None])
    covariance = covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    assert ((y.mean(0) - mean).abs() < 5 * (covariance.diagonal() / n).sqrt()).all()
    torch.testing.assert_close(y.T.cov(), covariance, rtol=0.03, atol=0.01)


def test_samples_repeat_with_the_generator():
    mixture = random_mixture(5)
    first, second = (mixture.sample(9, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_float32_input_loses_nothing_but_its_own_digits():
    mixture = fractal()
    x = mixture.sample(2000, generator=torch.Generator().manual_seed(0))
    single = x.float()
    for sigma in (0.002, 0.2):
        got, want = mixture.denoise(single, sigma), mixture.denoise(single.double(), sigma)
        assert got.dtype == torch.float32
        assert (got - want).abs().max() < 1e-6


def test_far_points_stay_finite():
    x = torch.tensor([[1e6, -1e6], [3e8, 0.0]], dtype=torch.float64)
    mixture = fractal()
    for sigma in (0.0, 0.002, 5.0):
        assert mixture.log_prob(x, sigma).isfinite().all()
        assert mixture.score(x, sigma).isfinite().all()
    assert mixture.denoise(x, 0.002).isfinite().all()
    torch.testing.assert_close(mixture.denoise(x, 0.0), x, rtol=1e-15, atol=0)


@pytest.mark.parametrize("away", [1e3, 1e6])
def test_a_mixture_far_from_the_origin_loses_no_digits(away):
    """Two thin components beside each other; a σ for each point takes the path without quadratic features."""
    means = torch.tensor([[away, -away], [away + 0.03, -away]], dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(2), means, 1e-4 * torch.eye(2, dtype=torch.float64).repeat(2, 1, 1))
    x = mixture.sample(50, generator=torch.Generator().manual_seed(0))
    shared, each = mixture.denoise(x, 0.01), mixture.denoise(x, torch.full((50,), 0.01, dtype=torch.float64))
    torch.testing.assert_close(shared, each, rtol=0, atol=1e-9)
    torch.testing.assert_close(mixture.log_prob(x), mixture_log_prob(mixture, x, 0.0), rtol=0, atol=1e-6)


def test_single_precision_covariances_are_taken():
    root = torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(0))
    mixture = GaussianMixture(torch.ones(40), torch.zeros(40, 3), torch.linalg.inv(root @ root.mT + 0.1 * torch.eye(3)))
    assert torch.equal(mixture.covariances, mixture.covariances.mT)


def test_no_points_give_no_values():
    empty = torch.zeros(0, 2, dtype=torch.float64)
    assert fractal().log_prob(empty).shape == (0,)
    assert fractal().denoise(empty, 0.1).shape == (0, 2)


eye = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([1.0, 1.0], torch.zeros(1, 2), eye[None], r"shapes \(2,\), \(1, 2\), \(1, 2, 2\); they must be \(K,\)"),
        ([-1.0], torch.zeros(1, 2), eye[None], "weights contains -1.0; every weight must be > 0"),
        ([1.0], torch.full((1, 2), math.nan), eye[None], "means contains nan; all values must be finite"),
        (
            [1.0],
            torch.zeros(1, 2),
            -eye[None],
            r"covariances\[0\] has the eigenvalue -1.0; it must be positive definite",
        ),
        (
            [1.0],
            torch.zeros(1, 2),
            torch.tensor([[[1.0, 0.5], [0, 1]]]),
            r"covariances\[0\] is .*; it must be symmetric",
        ),
    ],
)
def test_bad_mixtures_are_refused_by_name(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(torch.tensor(weights), means, covariances)


def test_bad_calls_are_refused_by_name():
    mixture, x = random_mixture(0), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"sigma is -0\.1; it must be >= 0"):
        mixture.score(x, -0.1)
    with pytest.raises(ValueError, match="sigma is nan"):
        mixture.denoise(x, math.nan)
    with pytest.raises(ValueError, match=r"sigma contains nan"):
        mixture.denoise(x, torch.tensor([0.1, math.nan, 1, 1]))
    with pytest.raises(ValueError, match=r"sigma has shape \(3,\); it must be a prefix of \(4, 2\)"):
        mixture.denoise(x, torch.ones(3))
    with pytest.raises(ValueError, match=r"sigma has shape \(4, 2\); it may not vary within a point"):
        mixture.denoise(x, torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"points have shape \(4, 3\), torch.float32; their last axis must be 2"):
        mixture.log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"points have shape \(4, 2\), torch.int64; .* of floats"):
        mixture.log_prob(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x, bandwidth are .* must be finite"):
        mixture.product(torch.full((2,), math.nan), 1.0)
    with pytest.raises(ValueError, match="bandwidth is 0; it must be > 0"):
        mixture.product(torch.zeros(2), 0)
    with pytest.raises(ValueError, match=r"x has shape \(4, 2\); it must be one point, \(2,\)"):
        mixture.product(x, 1.0)


def test_lists_and_arrays_describe_a_mixture_to_their_last_digit():
    weights, means, covariances = [0.1, 0.3], [[0.1, 0.2], [1 / 3, 2.0]], [[[0.3, 0.1], [0.1, 0.2]]] * 2
    x = draw(0, 4, 2)
    kinds = [np.asarray(part) for part in (weights, means, covariances)]
    listed, arrays = GaussianMixture(weights, means, covariances), GaussianMixture(*kinds)  # pyright: ignore
    tensors = GaussianMixture(*(torch.as_tensor(part) for part in kinds))
    assert torch.equal(listed.log_prob(x), tensors.log_prob(x))
    assert torch.equal(arrays.log_prob(x), tensors.log_prob(x))
    single = kinds[2].astype(np.float32)
    single[0, 0, 1] = np.nextafter(single[0, 0, 1], np.float32(1))  # symmetric but for rounding
    assert GaussianMixture(kinds[0], kinds[1], single).covariances.isfinite().all()  # pyright: ignore


def test_a_mixture_keeps_its_own_numbers():
    means = torch.zeros(1, 2, dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(1), means, eye[None])
    means += 5
    assert mixture.means.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.sample(1e4), r"n is 10000.0; it must be a whole number, at least 1"),
        (lambda p: p.sample(0), "n is 0; it must be a whole number"),
        (lambda p: p.log_prob(np.zeros((3, 2))), r"points are a ndarray; they must be a torch tensor \(\*batch, 2\)"),
        (lambda p: p.denoise([[0.0, 0.0]], 0.1), "points are a list"),
        (lambda p: p.score(torch.zeros(3, 2, dtype=torch.complex64)), "complex64; .* of floats"),
        (
            lambda p: p.product(torch.zeros(2, dtype=torch.complex64), 1.0),
            "x has dtype torch.complex64; it must be real",
        ),
        (lambda p: GaussianMixture(p.weights, p.means + 0j, p.covariances), "means has dtype torch.complex128"),
        (lambda p: GaussianMixture(p.weights, p.means, p.covariances * math.nan), "covariances contains nan"),
        (
            lambda p: GaussianMixture(p.weights * 0, p.means, p.covariances),
            "weights contains 0.0; every weight must be",
        ),
        (lambda p: GaussianMixture(p.weights / 0, p.means, p.covariances), "weights contains inf"),
        (lambda p: GaussianMixture(p.weights * 0 + 1e308, p.means, p.covariances), "their sum finite"),
        (lambda p: GaussianMixture("abc", p.means, p.covariances), "weights is 'abc'; it must be numbers"),
    ],
)
def test_other_kinds_of_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_mixture(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_mixture_described_on_a_gpu_is_the_same():
    mixture = random_mixture(0)
    moved = GaussianMixture(*(part.cuda() for part in (mixture.weights, mixture.means, mixture.covariances)))
    x = draw(0, 4, 2)
    torch.testing.assert_close(moved.denoise(x.cuda(), 0.3).cpu(), mixture.denoise(x, 0.3))
    torch.testing.assert_close(moved.product(x[0].cuda(), 0.3).means, mixture.product(x[0], 0.3).means)
    assert moved.sample(3, generator=torch.Generator().manual_seed(0)).device.type == "cpu"


def test_whole_numbers_are_numbers():
    mixture = GaussianMixture(torch.tensor([1, 3]), torch.tensor([[0, 0], [2, 1]]), torch.eye(2).long().expand(2, 2, 2))
    assert mixture.weights.tolist() == [0.25, 0.75]
    assert mixture.log_prob(torch.zeros(2)).isfinite()
