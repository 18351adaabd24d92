import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_mixture

from msd_teach import GaussianMixture, IdealDenoiser, counted, invert, karras_sigmas, sample
from msd_teach.sampling import SOLVERS

ORDER = {"euler": 1, "heun": 2}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(steps=st.integers(1, 200), rho=st.floats(1, 10))
@settings(max_examples=30, deadline=None)
def test_karras_sigmas_descend_from_end_to_end(steps, rho):
    sigmas = karras_sigmas(steps, 0.002, 80, rho)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float64
    assert sigmas[0] == 80
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    if steps > 1:
        assert sigmas[-2] == pytest.approx(0.002)
        assert (sigmas[:-1] ** (1 / rho)).diff().std(correction=0) < 1e-9


def test_one_gaussian_has_a_closed_form_flow():
    """For p = N(0, s²) the ODE scales z by √(s² + σ²), so that noise lands on s z/√(s² + σ_max²)."""
    s, levels = 0.7, karras_sigmas(4000, 1e-3, 10)
    gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 2), s**2 * torch.eye(2)[None])
    z = 10 * draw(0, 50, 2)
    *_, x = sample(gaussian.denoise, z, levels)
    torch.testing.assert_close(x, s * z / math.hypot(s, 10), rtol=1e-5, atol=0)


def errors(solver: str, steps: list[int], flow) -> torch.Tensor:
    """Pathwise error against a fine reference for each number of steps, over σ from 3 to .1."""

    def grid(n: int) -> torch.Tensor:
        return torch.linspace(3**0.5, 0.1**0.5, n + 1, dtype=torch.float64) ** 2

    *_, best = flow(grid(4096), "heun")
    return torch.stack([(list(flow(grid(n), solver))[-1] - best).norm(dim=-1).median() for n in steps])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("direction", [sample, invert])
def test_solver_shows_its_order_pathwise(solver, direction):
    """Invariant 3 of docs/invariants.md."""
    mixture, z = random_mixture(1, thinnest=0.3), 3 * draw(0, 64, 2)
    error = errors(solver, [32, 64, 128, 256], lambda levels, kind: direction(mixture.denoise, z, levels, kind))
    slopes = -error.log2().diff()
    assert (slopes - ORDER[solver]).abs().max() < 0.15


@pytest.mark.parametrize("solver", SOLVERS)
def test_inversion_then_sampling_returns_at_the_solvers_order(solver):
    """Invariant 10 of docs/invariants.md, above σ = .1; the drift at σ = 0 has its own test below.

    Heun does better than its order, 3: the h³ error of a step and the (−h)³ error of the step back cancel.
    """
    mixture, x = (
        random_mixture(1, thinnest=0.3),
        random_mixture(1).sample(64, generator=torch.Generator().manual_seed(0)),
    )
    error = []
    for steps in (32, 64, 128, 256):
        levels = torch.linspace(3**0.5, 0.1**0.5, steps + 1, dtype=torch.float64) ** 2
        *_, z = invert(mixture.denoise, x, levels, solver)
        *_, back = sample(mixture.denoise, z, levels, solver)
        error.append((back - x).norm(dim=-1).median())
    slopes = -torch.stack(error).log2().diff()
    assert (slopes - {"euler": 1, "heun": 3}[solver]).abs().max() < 0.15


def test_inversion_starts_at_zero_without_drift_and_lies_on_the_samplers_grid():
    mixture, levels = random_mixture(1, thinnest=0.3), karras_sigmas(64, 1e-3, 5)
    x = mixture.sample(32, generator=torch.Generator().manual_seed(0))
    there = list(invert(mixture.denoise, x, levels))
    assert len(there) == len(levels)
    assert torch.equal(there[0], x)
    assert torch.equal(there[1], x)
    back = list(sample(mixture.denoise, there[-1], levels))
    aligned = torch.stack([(a - b).norm(dim=-1).max() for a, b in zip(reversed(there), back, strict=True)])
    assert aligned.max() < 0.02


def test_samples_have_the_mixtures_moments():
    mixture, n = random_mixture(4, thinnest=0.3), 20_000
    *_, y = sample(mixture.denoise, 20 * draw(0, n, 2), karras_sigmas(64, 1e-3, 20))
    want = mixture.sample(n, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y.mean(0), want.mean(0), rtol=0, atol=0.05)
    torch.testing.assert_close(y.T.cov(), want.T.cov(), rtol=0.05, atol=0.03)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 8), ("heun", 15)])
def test_cost_in_denoiser_calls(solver, calls):
    denoise = counted(random_mixture(0).denoise)
    states = list(sample(denoise, draw(0, 3, 2), karras_sigmas(8, 0.01, 1), solver))
    assert len(states) == 9
    assert denoise.calls == calls


def test_the_ideal_denoiser_samples_its_data():
    data = draw(0, 50, 2)
    *_, y = sample(IdealDenoiser(data), 20 * draw(1, 200, 2), karras_sigmas(64, 1e-3, 20))
    assert torch.cdist(y, data).amin(-1).quantile(0.95) < 1e-3


def test_dtype_follows_and_no_graph_is_kept():
    z = torch.randn(3, 2, requires_grad=True)
    *_, y = sample(random_mixture(0).denoise, z, karras_sigmas(3, 0.01, 1))
    assert y.dtype == torch.float32
    assert not y.requires_grad


@pytest.mark.parametrize("direction", [sample, invert])
def test_bad_input_is_refused_before_the_first_step(direction):
    denoise, z = random_mixture(0).denoise, draw(0, 3, 2)
    with pytest.raises(ValueError, match="solver is 'rk4'; it may be one of heun, euler"):
        direction(denoise, z, karras_sigmas(3, 0.1, 1), "rk4")
    for sigmas in ([1.0], [0.1, 1.0], [1.0, 1.0, 0.0], [1.0, -0.5], [1.0, math.nan, 0.0]):
        with pytest.raises(ValueError, match=r"sigmas are .* strictly descending, the last one >= 0"):
            direction(denoise, z, torch.tensor(sigmas))
    for no_grid in (None, "abc", torch.tensor(1.0), torch.tensor([[1.0, 0.0]]), torch.tensor([2.0 + 0j, 1.0])):
        with pytest.raises(ValueError, match=r"sigmas are .* strictly descending, the last one >= 0"):
            direction(denoise, z, no_grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1, 1), "steps is 0"),
        ((3, 0, 1), "sigma_min, sigma_max are 0, 1"),
        ((3, 2, 1), "sigma_min, sigma_max are 2, 1"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        karras_sigmas(*arguments)
