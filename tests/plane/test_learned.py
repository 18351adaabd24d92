"""The toy network: what it computes, how its weights are averaged, and that an interrupted training changes nothing."""

import itertools
import math

import pytest
import torch
from reference import random_mixture
from torch.nn.functional import silu

from msd_teach import GaussianMixture, LearnedDenoiser, eight_gaussians, guided, karras_sigmas, sample, train_denoiser
from msd_teach.files import load
from msd_teach.plane import learned
from msd_teach.plane.learned import follow, power_exponent, training, training_points


def some_network(dimensions: int = 2, width: int = 16) -> LearnedDenoiser:
    """Random weights and a gain that lets them speak."""
    network = LearnedDenoiser(dimensions, width, torch.Generator().manual_seed(0)).requires_grad_(False)
    network.gain.fill_(0.3)
    return network


def draw(seed: int, *shape: int, kind: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=kind)


def slow_log_density(network: LearnedDenoiser, z: torch.Tensor, sigma: float) -> torch.Tensor:
    """The network's formula for one point, in float64, layer by layer and row by row."""
    x = z / math.sqrt(0.25 + sigma**2)
    h = torch.cat([x, torch.tensor([math.log(sigma) / 4, 1.0], dtype=torch.float64)])
    for i, matrix in enumerate(network.weights):
        h = h if i == 0 else silu(h) / 0.596
        h = torch.stack([row.double() @ h / row.double().norm() for row in matrix])
    return (h**2).mean() * network.gain.double() / sigma - (x**2).sum() / 2


@pytest.fixture
def quick(monkeypatch):
    """Rounds so short that a training has several in a second."""
    monkeypatch.setattr(learned, "ROUND", 8)
    monkeypatch.setattr(learned, "LEVELS", 16)
    return {"width": 8, "iterations": 20, "batch": 32}


@pytest.fixture(scope="module")
def trained():
    return train_denoiser(eight_gaussians(), iterations=1024, batch=512)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 4.0])
def test_denoiser_is_tweedie_of_the_log_density(sigma):
    network, z = some_network(), draw(1, 7, 2)
    for point, mean, score in zip(z, network(z, sigma), network.score(z, sigma), strict=True):
        point = point.clone().requires_grad_()
        (want,) = torch.autograd.grad(slow_log_density(network, point, sigma), point)
        torch.testing.assert_close(score, want, rtol=1e-4, atol=1e-4 / sigma)
        torch.testing.assert_close(mean, point.detach() + sigma**2 * want, rtol=1e-4, atol=1e-4 * sigma)


def test_untrained_network_is_a_gaussian_denoiser():
    network, z = LearnedDenoiser(3, 8), draw(0, 5, 3)
    torch.testing.assert_close(network(z, 0.7), z * 0.25 / (0.25 + 0.49), rtol=1e-6, atol=1e-6)
    assert torch.equal(network(z, 0.0), z)


def test_the_activation_keeps_the_magnitude():
    x = draw(1, 200_000, kind=torch.float32)
    assert abs((silu(x) / learned.SILU_GAIN).square().mean() - 1) < 0.01


def test_denoiser_can_be_differentiated_and_is_a_gradient_field(trained):
    z, sigma = eight_gaussians().sample(6, 0.3, torch.Generator().manual_seed(0)), 0.3
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda p: trained(p, sigma), point) for point in z])  # pyright: ignore
    assert (jacobian - jacobian.mT).abs().max() < 1e-5 * jacobian.abs().max()
    assert (jacobian - torch.eye(2)).abs().max() > 0.1
    h = 0.01 * torch.eye(2, dtype=torch.float64)
    differences = torch.stack([(trained(z + e, sigma) - trained(z - e, sigma)) / 0.02 for e in h], -1)
    torch.testing.assert_close(jacobian, differences, rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.func.jacrev(lambda p: trained(p, sigma))(z[0]), jacobian[0], rtol=1e-4, atol=1e-5)


def test_no_gradients_are_kept_unless_wanted(trained):
    z = draw(0, 4, 2)
    assert not trained(z, 0.1).requires_grad  # frozen, so that a sampler builds no graph
    with torch.no_grad():
        assert not trained(z.requires_grad_(), 0.1).requires_grad
    assert trained(z, 0.1).requires_grad


def test_sigma_is_a_prefix_and_dtype_follows_the_input():
    network, z, sigma = some_network(), draw(0, 3, 4, 2), 0.1 + draw(1, 3, 4).abs()
    want = torch.stack([network(point, float(s)) for point, s in zip(z.flatten(0, 1), sigma.flatten(), strict=True)])
    for level in (sigma, sigma[..., None]):
        torch.testing.assert_close(network(z, level), want.reshape(z.shape), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(z, sigma[:, 0])[0], network(z[0], float(sigma[0, 0])), rtol=1e-5, atol=1e-6)
    for kind in (torch.float16, torch.float32, torch.float64):
        assert network(z.to(kind), sigma).dtype == network.score(z.to(kind), 0.1).dtype == kind


@pytest.mark.parametrize(
    ("z", "sigma", "message"),
    [
        (torch.zeros(4, 3), 0.1, r"z has shape \(4, 3\); its last axis must be 2"),
        (torch.zeros(4, 2), -0.1, r"sigma is -0.1; it must be >= 0"),
        (torch.zeros(4, 2), math.nan, r"sigma is nan"),
        (torch.zeros(4, 2), torch.ones(4, 2), r"sigma has shape \(4, 2\); it may not vary within a point"),
    ],
)
def test_bad_points_are_refused(z, sigma, message):
    with pytest.raises(ValueError, match=message):
        some_network()(z, sigma)


def test_bad_settings_are_refused():
    for name, count in (("width", 0), ("iterations", 1e2), ("batch", 8.5), ("batch", True)):
        with pytest.raises(ValueError, match=f"{name} is {count}; it must be a whole number, at least 1"):
            train_denoiser(density=eight_gaussians(), **{name: count})  # pyright: ignore[reportArgumentType]
    for width in (0.0, 0.3, math.nan):
        with pytest.raises(ValueError, match=r"width is .*; it must be > 0 and below 0.2887"):
            power_exponent(width)


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.3, 1.0])
def test_training_learns_the_score(trained, sigma):
    """On the typical set z = y + σn, against the analytic score and the best Gaussian denoiser."""
    density = eight_gaussians()
    z = density.sample(4000, sigma, torch.Generator().manual_seed(5))
    want = density.score(z, sigma)
    covariance = torch.cov(density.sample(100_000, generator=torch.Generator().manual_seed(6)).T)
    gaussian = -z @ torch.linalg.inv(covariance + sigma**2 * torch.eye(2))
    error, baseline = ((guess - want).norm() / want.norm() for guess in (trained.score(z, sigma), gaussian))
    assert error < 0.15
    assert error < baseline / 3


def test_it_can_be_sampled_and_guided(trained):
    density, noise = eight_gaussians(), 5 * draw(0, 500, 2)
    sigmas = karras_sigmas(16, 0.002, 5.0)
    *_, x = sample(guided(trained, density.denoise, 0.5), noise, sigmas)
    *_, truth = sample(density.denoise, noise, sigmas)
    assert (-density.log_prob(x)).mean() < (-density.log_prob(truth)).mean() + 0.3
    half = (trained(x, 0.2) + density.denoise(x, 0.2)) / 2
    torch.testing.assert_close(guided(trained, density.denoise, 0.5)(x, 0.2), half)


def test_seeds_decide(quick):
    first, again, other = (train_denoiser(random_mixture(0), seed=seed, **quick) for seed in (1, 1, 2))
    z = draw(0, 9, 2)
    assert torch.equal(first(z, 0.3), again(z, 0.3))
    assert not torch.allclose(first(z, 0.3), other(z, 0.3))


@pytest.mark.parametrize("interrupted_at", [9, 16, 19])
def test_interrupted_and_resumed_equals_uninterrupted(quick, tmp_path, monkeypatch, interrupted_at):
    density = random_mixture(0)
    whole = list(training(density, cache=tmp_path / "whole", **quick))

    def failing(average, network, iteration):
        if iteration == interrupted_at:
            raise KeyboardInterrupt
        follow(average, network, iteration)

    monkeypatch.setattr(learned, "follow", failing)
    with pytest.raises(KeyboardInterrupt):
        train_denoiser(density, cache=tmp_path / "parts", **quick)
    monkeypatch.setattr(learned, "follow", follow)
    resumed = list(training(density, cache=tmp_path / "parts", **quick))
    assert [info.iteration for info in resumed] == [info.iteration for info in whole][(interrupted_at - 1) // 8 - 1 :]
    kept = [load(next((tmp_path / name).iterdir())) for name in ("whole", "parts")]
    assert kept[0].pop("identity") == kept[1].pop("identity")
    torch.testing.assert_close(*kept, rtol=0, atol=0)
    torch.testing.assert_close(*(run[-1].denoiser.state_dict() for run in (whole, resumed)), rtol=0, atol=0)


def test_finished_training_is_only_loaded(quick, tmp_path, monkeypatch):
    density = random_mixture(0)
    trained = train_denoiser(density, cache=tmp_path, **quick)
    monkeypatch.setattr(learned, "follow", None)
    loaded = train_denoiser(density, cache=tmp_path, **quick)
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_cache_holds_one_file_for_each_training(quick, tmp_path):
    a, b = random_mixture(0), random_mixture(1)
    trainings = [{"density": density} | quick for density in (a, b, GaussianMixture(a.weights, a.means, b.covariances))]
    trainings += [trainings[0] | changed for changed in ({"width": 9}, {"iterations": 21}, {"batch": 33}, {"seed": 1})]
    for settings in trainings:
        train_denoiser(**settings, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(trainings)


def test_checkpoint_under_a_wrong_name_is_refused(quick, tmp_path):
    a, b = random_mixture(0), random_mixture(1)
    for density in (a, b):
        train_denoiser(density, cache=tmp_path, **quick)
    first, second = tmp_path.iterdir()
    first.replace(second)
    with pytest.raises(ValueError, match=r"checkpoint .* is of other settings: density was "):  # noqa: PT012
        train_denoiser(a, cache=tmp_path, **quick)
        train_denoiser(b, cache=tmp_path, **quick)


def test_loss_that_is_not_finite_stops_the_training(quick, tmp_path, monkeypatch):
    density, calls = random_mixture(0), itertools.count()

    def poisoned(z, sigma):
        return type(density).score(density, z, sigma) * (math.nan if next(calls) >= learned.LEVELS else 1.0)

    monkeypatch.setattr(density, "score", poisoned)  # from the second round on
    with pytest.raises(FloatingPointError, match="the loss is nan at iteration 9"):
        train_denoiser(density, cache=tmp_path, **quick)
    (checkpoint,) = tmp_path.iterdir()
    assert load(checkpoint)["numbers"] == {"iteration": 8}


def test_a_damaged_checkpoint_is_named(quick, tmp_path):
    train_denoiser(random_mixture(0), cache=tmp_path, **quick)
    (checkpoint,) = tmp_path.iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{checkpoint.name} is damaged .*; delete it to start anew"):
        train_denoiser(random_mixture(0), cache=tmp_path, **quick)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.15])
def test_exponent_of_the_average(width):
    """The profile t^γ on (0, 1) has the standard deviation asked for, by quadrature."""
    gamma = power_exponent(width)
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    weight = t**gamma / (t**gamma).sum()
    mean = (weight * t).sum()
    assert abs((weight * (t - mean) ** 2).sum().sqrt() - width) < 1e-6


def test_average_has_its_closed_form():
    """Weights drawn anew at each step, averaged step by step and in one sum."""
    steps, gamma = 300, power_exponent(0.010)
    history = draw(0, steps, 5)
    network, average = torch.nn.Linear(5, 1, bias=False).double(), torch.nn.Linear(5, 1, bias=False).double()
    for t, value in enumerate(history, 1):
        network.weight.data[0] = value
        follow(average, network, t)
    ends = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (gamma + 1)
    torch.testing.assert_close(average.weight.data[0], ends.diff() @ history, rtol=1e-12, atol=1e-12)


def test_noise_levels_and_scores_of_the_training_points():
    density, generator = random_mixture(3, dimension=3), torch.Generator().manual_seed(0)
    rows = training_points(density, 20_000, generator)
    z, sigma, score = rows.double().split([3, 1, 3], dim=1)
    torch.testing.assert_close(score, density.score(z, sigma), rtol=1e-3, atol=1e-3 / float(sigma.min()))
    assert len(rows) >= 20_000
    logs = sigma.log().unique()
    assert abs(logs.mean() + 2.3) < 4 * 1.5 / math.sqrt(len(logs))
    assert abs(logs.std() - 1.5) < 4 * 1.5 / math.sqrt(2 * len(logs))


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 0.3, 300.0])
def test_half_precision_is_rounding_alone(sigma):
    z = 5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + 3
    net = LearnedDenoiser(generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.gain.fill_(-0.3)
    half = net(z.half(), sigma)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), net(z.half().float(), sigma), rtol=2e-3, atol=2e-3)
