import math

import numpy as np
import pytest
import torch
from reference import random_mixture
from torch import Tensor

from msd_teach import GaussianMixture, fractal
from msd_teach.plane import landscape
from msd_teach.plane.landscape import (
    interpolate,
    least_squares_potential,
    mean_shift_potential,
    sds_field,
    sds_potential,
    stationary_points,
)
from msd_teach.schedules import (
    annealed,
    chain_rule_weight,
    dreamfusion_weight,
    linear,
    literal_weight,
    uniform_sigma,
    uniform_time,
    unit_weight,
)

MIXTURE = random_mixture(1, thinnest=0.2)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def square(n: int, span: float) -> Tensor:
    axis = torch.linspace(-span, span, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).flip(-1)


def rms(v: Tensor) -> float:
    return float(v.square().sum(-1).mean().sqrt())


@pytest.mark.parametrize("weight", [dreamfusion_weight, chain_rule_weight, literal_weight, unit_weight])
@pytest.mark.parametrize("law", [uniform_sigma(0.1, 3.0), uniform_time(0.1, 0.9)], ids=["σ", "t"])
def test_sds_against_gauss_hermite_and_automatic_differentiation(law, weight):
    """Invariant 8 of docs/invariants.md: a second quadrature of −E[w σ² log p_σ], its autograd, and E[w (x − D)] term by term."""
    x = draw(0, 6, 2).requires_grad_()
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(40))
    n = torch.cartesian_prod(nodes, nodes)
    p = torch.cartesian_prod(weights, weights).prod(-1) / (2 * math.pi)
    potential, field = torch.zeros(6, dtype=torch.float64), torch.zeros(6, 2, dtype=torch.float64)
    for i in range(16):
        σ = law(torch.tensor([(i + 0.5) / 16], dtype=torch.float64), 0.0)
        w, level = weight(σ) / 16, float(σ)
        z = x[:, None] + σ * n
        potential = potential - w * σ**2 * MIXTURE.log_prob(z, level) @ p
        field = field + w * ((x[:, None] - MIXTURE.denoise(z, level)) * p[:, None]).sum(1).detach()
    (gradient,) = torch.autograd.grad(potential.sum(), x)
    torch.testing.assert_close(
        sds_potential(MIXTURE, x, law, weight, levels=16), potential.detach(), rtol=1e-5, atol=1e-5
    )
    got = sds_field(MIXTURE, x, law, weight, levels=16)
    torch.testing.assert_close(got, gradient, rtol=1e-3, atol=1e-3 * rms(gradient))
    torch.testing.assert_close(got, field, rtol=1e-3, atol=1e-3 * rms(field))


@pytest.mark.parametrize("s", [0.05, 0.3])
def test_sds_of_one_gaussian_in_closed_form(s):
    """For N(0, s²I), D = z s²/(s² + σ²): the field is w x σ²/(s² + σ²), and E|x + σn|² = |x|² + 2σ²."""
    normal = GaussianMixture(torch.ones(1), torch.zeros(1, 2), s**2 * torch.eye(2)[None])
    x, σ = 3 * draw(0, 7, 2), 0.7
    law = annealed(linear(σ, σ))
    v = s**2 + σ**2
    torch.testing.assert_close(sds_field(normal, x, law), σ / (1 + σ**2) * σ**2 / v * x, rtol=1e-5, atol=1e-5)
    log = -(x.square().sum(-1) + 2 * σ**2) / (2 * v) - math.log(2 * math.pi * v)
    torch.testing.assert_close(sds_potential(normal, x, law, unit_weight), -(σ**2) * log, rtol=1e-5, atol=1e-5)


def test_sds_on_one_lattice_or_around_each_point():
    """Both ways of placing the nodes agree: near points share a lattice, far ones do not."""
    near = 0.1 * draw(0, 40, 2)
    law = annealed(linear(0.4, 0.4))
    together = sds_field(MIXTURE, near, law, unit_weight)
    alone = torch.stack([sds_field(MIXTURE, x, law, unit_weight) for x in near])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    far = torch.cat([near[:2], near[:1] + 1e3])
    torch.testing.assert_close(sds_field(MIXTURE, far, law, unit_weight)[:2], alone[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("law", [uniform_sigma(), uniform_time()], ids=["σ", "t"])
def test_the_stated_error_on_the_fractal(law, monkeypatch):
    """64 levels and nodes of σ/2, against 128 levels and σ/4: 1e-4 of the field's root mean square."""
    mixture, x = fractal(), 1.5 * (2 * torch.rand(3, 2, dtype=torch.float64, generator=torch.manual_seed(0)) - 1)
    got = sds_field(mixture, x, law)
    monkeypatch.setattr(landscape, "STEP", 0.25)
    fine = sds_field(mixture, x, law, levels=128)
    assert rms(got - fine) < 2e-4 * rms(fine)


def test_mean_shift_descends_its_potential():
    for λ in (0.05, 0.3, torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])):
        x = draw(0, 6, 2).requires_grad_()
        potential = mean_shift_potential(MIXTURE, x, λ)
        assert potential.shape == (6,)
        (gradient,) = torch.autograd.grad(potential.sum(), x)
        torch.testing.assert_close(gradient, x - MIXTURE.denoise(x, λ), rtol=1e-9, atol=1e-9)


def test_least_squares_finds_the_known_potentials_at_second_order():
    """Mean shift and SDS are gradients: what is left falls by 4 when the spacing halves."""
    σ_law = annealed(linear(0.5, 0.5))
    for field, potential in (
        (lambda x: x - MIXTURE.denoise(x, 0.4), lambda x: mean_shift_potential(MIXTURE, x, 0.4)),
        (lambda x: sds_field(MIXTURE, x, σ_law, levels=1), lambda x: sds_potential(MIXTURE, x, σ_law, levels=1)),
    ):
        error = []
        for n in (33, 65):
            x = square(n, 2.0)
            found = least_squares_potential(field(x).reshape(n, n, 2), 4 / (n - 1))
            want = potential(x).reshape(n, n)
            error.append(float((found.potential - (want - want.mean())).norm() / (want - want.mean()).norm()))
            assert found.residual < 0.01
        assert error[1] < 2e-3
        assert error[0] / error[1] == pytest.approx(4, rel=0.15)


def test_least_squares_against_dense_normal_equations():
    """Any field on a lattice that is not square, by numpy's least squares over all edges."""
    rows, columns, h = 5, 7, 0.3
    field = draw(0, rows, columns, 2)
    number = np.arange(rows * columns).reshape(rows, columns)
    g = field.numpy()
    right = [(number[:, :-1], number[:, 1:], (g[:, :-1, 0] + g[:, 1:, 0]) / 2)]
    up = [(number[:-1], number[1:], (g[:-1, :, 1] + g[1:, :, 1]) / 2)]
    start, end, slope = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*(right + up), strict=True))
    A = np.zeros((len(start), rows * columns))
    A[np.arange(len(start)), start], A[np.arange(len(start)), end] = -1, 1
    φ = np.linalg.lstsq(A, h * slope, rcond=None)[0]
    found = least_squares_potential(field, h)
    np.testing.assert_allclose(found.potential.numpy().ravel(), φ - φ.mean(), rtol=0, atol=1e-12)
    assert found.residual == pytest.approx(np.linalg.norm(A @ φ - h * slope) / np.linalg.norm(h * slope))


def test_a_rotation_has_no_potential_and_a_linear_field_an_exact_one():
    x = square(21, 1.0).reshape(21, 21, 2)
    rotation = torch.stack([-x[..., 1], x[..., 0]], -1)
    found = least_squares_potential(rotation, 0.1)
    assert found.residual == pytest.approx(1, abs=0.35)
    assert least_squares_potential(x, 0.1).residual < 1e-12
    torch.testing.assert_close(
        least_squares_potential(x, 0.1).potential, x.square().sum(-1) / 2 - x.square().sum(-1).mean() / 2
    )
    assert least_squares_potential(torch.zeros(4, 4, 2), 1.0).residual == 0


def test_interpolation_is_of_fourth_order_and_reads_rows_along_y():
    def field(x: Tensor) -> Tensor:
        return x - MIXTURE.denoise(x, 0.4)

    x = 1.8 * (2 * torch.rand(300, 2, dtype=torch.float64, generator=torch.manual_seed(0)) - 1)
    error = [rms(interpolate(field(square(n, 2.0)).reshape(n, n, 2), 2.0)(x) - field(x)) for n in (41, 81)]
    assert error[1] < 1e-4 * rms(field(x))
    assert 10 < error[0] / error[1] < 40
    border = torch.tensor([[9.0, 0.5]], dtype=torch.float64)
    at = interpolate(field(square(41, 2.0)).reshape(41, 41, 2), 2.0)
    torch.testing.assert_close(at(border), at(border.clamp(-2, 2)))


def test_stationary_points_of_two_gaussians():
    """Far apart: two minima of the potential and a saddle halfway; close together: one minimum."""
    for distance, minima in ((1.0, 2), (0.15, 1)):
        a = torch.tensor([[-distance, 0.1], [distance, 0.1]], dtype=torch.float64)
        pair = GaussianMixture(torch.ones(2), a, 0.04 * torch.eye(2).expand(2, 2, 2))
        points, downhill = stationary_points(lambda x, p=pair: x - p.denoise(x, 0.1), 2.0)
        assert downhill.bincount(minlength=3).tolist() == [minima, minima - 1, 0]
        torch.testing.assert_close(points[:, 1], torch.full((2 * minima - 1,), 0.1, dtype=torch.float64))
        middle = points[downhill == 1] if minima == 2 else points
        torch.testing.assert_close(middle[:, 0], torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("λ", [0.15, 0.05])
def test_every_mode_that_mean_shift_reaches_is_found_on_the_fractal(λ):
    mixture = fractal()
    points, downhill = stationary_points(lambda x: x - mixture.denoise(x, λ), 1.5)
    count = downhill.bincount(minlength=3)
    assert count[0] - count[1] + count[2] == 1
    x = mixture.sample(20, generator=torch.Generator().manual_seed(0))
    for _ in range(1500):
        x = mixture.denoise(x, λ)
    assert torch.cdist(x, points[downhill == 0]).amin(-1).max() < 1e-3


def test_a_ring_around_an_eruption():
    """x (|x|² − 1) has a maximum of its potential at 0; with x₀ pulled apart, four more points on the ring."""

    def field(x: Tensor) -> Tensor:
        return x * (x.square().sum(-1, keepdim=True) - 1) + torch.tensor([0.0, 0.3]) * x

    points, downhill = stationary_points(field, 2.0)
    assert downhill.bincount(minlength=3).tolist() == [2, 2, 1]
    assert points[downhill == 2].norm() < 1e-9
    torch.testing.assert_close(points[downhill == 0][:, 0].abs(), torch.ones(2, dtype=torch.float64))
    assert len(stationary_points(lambda x: x + 9, 2.0).points) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_follow(dtype):
    x = torch.zeros(2, 3, 2, dtype=dtype)
    for value, shape in (
        (sds_potential(MIXTURE, x, levels=2), (2, 3)),
        (sds_field(MIXTURE, x, levels=2), (2, 3, 2)),
        (mean_shift_potential(MIXTURE, x, 0.3), (2, 3)),
    ):
        assert value.shape == shape
        assert value.dtype == dtype
        assert value.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sds_field(MIXTURE, torch.zeros(3)), r"x has shape \(3,\), the mixture 2 dimensions"),
        (
            lambda: sds_potential(random_mixture(0, dimension=3), torch.zeros(2)),
            "3 dimensions; points and mixture must be 2-D",
        ),
        (lambda: sds_field(MIXTURE, torch.zeros(2), levels=0), "levels is 0; it must be a whole number, at least 1"),
        (lambda: mean_shift_potential(MIXTURE, torch.zeros(2), 0.0), r"bandwidth is 0\.0; it must be > 0"),
        (lambda: least_squares_potential(torch.zeros(4, 2), 0.1), r"field has shape \(4, 2\)"),
        (lambda: least_squares_potential(torch.zeros(1, 4, 2), 0.1), r"field has shape \(1, 4, 2\)"),
        (lambda: least_squares_potential(torch.full((4, 4, 2), math.nan), 0.1), "finite"),
        (lambda: least_squares_potential(torch.zeros(4, 4, 2), 0.0), r"spacing is 0\.0; it must be > 0"),
        (lambda: interpolate(torch.zeros(3, 3, 2), 1.0), r"field has shape \(3, 3, 2\)"),
        (lambda: interpolate(torch.zeros(4, 5, 2), 1.0), r"field has shape \(4, 5, 2\)"),
        (lambda: interpolate(torch.full((4, 4, 2), math.nan), 1.0), "finite"),
        (lambda: interpolate(torch.zeros(4, 4, 2), math.nan), "span is nan; it must be > 0 and finite"),
        (lambda: stationary_points(MIXTURE.score, -1.0), "span is -1.0; it must be > 0 and finite"),
        (lambda: stationary_points(MIXTURE.score, 1.0, 8.0), "n is 8.0; it must be a whole number"),  # pyright: ignore
        (lambda: stationary_points(MIXTURE.score, 1.0, 1), "n is 1; a lattice needs at least 2"),
        (lambda: sds_field(MIXTURE, np.zeros((3, 2))), "x is a ndarray; it must be a torch tensor of floats"),  # pyright: ignore
        (lambda: sds_potential(MIXTURE, torch.full((1, 2), math.nan)), "x contains nan; all values must be finite"),
        (lambda: mean_shift_potential(MIXTURE, np.zeros((3, 2)), 0.1), "x is a ndarray"),  # pyright: ignore
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
