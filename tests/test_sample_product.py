import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_mixture
from torch import Tensor

from msd_teach import (
    GaussianMixture,
    IdealDenoiser,
    counted,
    fractal,
    guided,
    invert,
    karras_sigmas,
    product_denoiser,
    sample,
    sample_product,
)
from msd_teach.product import KERNELS

SMOOTH = random_mixture(1, thinnest=0.3)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(denoise, x: Tensor, bandwidth, sigmas: Tensor, kernel: str, seed: int = 0, **options) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    *_, y = sample_product(denoise, x, bandwidth, sigmas, kernel, generator=g, **options)
    return y


@cache
def at_rest(kernel: str, solver: str, steps: int) -> Tensor:
    """Where 32 samples stand at σ = .1, from the same noise at σ = 3 whatever the steps."""
    x = SMOOTH.sample(32, generator=torch.Generator().manual_seed(3))
    grid = torch.linspace(3**0.5, 0.1**0.5, steps + 1, dtype=torch.float64) ** 2
    return last(SMOOTH.denoise, x, 0.5, grid, kernel, solver=solver)


@pytest.mark.parametrize(
    ("kernel", "solver", "order"),
    [
        ("exact", "euler", 1),
        ("exact", "heun", 2),
        ("explicit", "euler", 1),
        ("explicit", "heun", 2),
        ("exponential", "euler", 1),
        ("exponential", "heun", 1),
    ],
)
def test_order_of_convergence_pathwise(kernel, solver, order):
    """Invariant 3 of docs/invariants.md. The reference of the splitting is the explicit sampler: both solve the same equation."""
    error = [
        (at_rest(kernel, solver, n) - at_rest("exact" if kernel == "exact" else "explicit", "heun", 2048))
        for n in (128, 256, 512)
    ]
    slopes = -torch.stack(error).norm(dim=-1).median(-1).values.log2().diff()
    assert (slopes - order).abs().max() < 0.15, slopes


@pytest.mark.parametrize("kernel", ["explicit", "exponential"])
@pytest.mark.parametrize(("s", "λ", "x"), [(0.7, 0.7, 1.0), (1.2, 0.6, -0.8), (0.4, 0.9, 1.7)])
def test_the_sum_of_scores_misses_the_mean_by_the_predicted_amount(kernel, s, λ, x):
    """For p = N(0, s²) and σ_max → ∞ both samplers of the sum end at x √(π/2) (s/λ) e^{r²} erfc(r), r = s/(√2 λ)."""
    normal = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([[[s**2]]], dtype=torch.float64))
    r, top = s / (math.sqrt(2) * λ), 6 * λ + 2 * s
    predicted = x * math.sqrt(math.pi / 2) * (s / λ) * math.exp(r**2) * math.erfc(r)
    where = torch.full((5, 1), x, dtype=torch.float64)

    def end(steps: int) -> Tensor:
        return last(normal.denoise, where, λ, torch.linspace(top, 0, steps + 1, dtype=torch.float64), kernel)

    coarse, fine = end(300), end(600)
    order = 1 if kernel == "exponential" else 2
    limit = fine + (fine - coarse) / (2**order - 1)  # Richardson
    torch.testing.assert_close(limit, torch.full_like(fine, predicted), rtol=1e-3, atol=0)
    exact = last(normal.denoise, where, λ, karras_sigmas(64, 1e-3, top), "exact")
    assert exact.std() > 100 * fine.std(), "the sum of scores has no spread left, the product has"


@given(here=st.floats(0.1, 10), share=st.floats(0.01, 1), λ=st.floats(0.05, 3))
@settings(max_examples=30, deadline=None)
def test_one_explicit_step_multiplies_the_distance_to_x(here, share, λ):
    """With a flat p, whose D(z) = z, the kernel acts alone: by 1 + σ_i (σ_{i+1} − σ_i)/λ² in Euler's step."""
    x, there = draw(0, 4, 2), here * (1 - share)
    sigmas = torch.tensor([here, there], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    z, y = sample_product(lambda z, sigma: z, x, λ, sigmas, "explicit", solver="euler", generator=g)
    torch.testing.assert_close(y - x, (1 + here * (there - here) / λ**2) * (z - x))


@pytest.mark.parametrize(("ratio", "explodes"), [(1.8, False), (2.2, True)])
def test_the_explicit_sampler_explodes_at_the_predicted_step(ratio, explodes):
    """σ|Δσ|/λ² = 2 is the border, on the fractal too when λ is far below σ; the exponential kernel does not mind."""
    mixture, λ = fractal(), 0.07
    levels = [1.0]
    while len(levels) < 31:
        levels.append(levels[-1] - ratio * λ**2 / levels[-1])
    x = draw(1, 1, 2).expand(200, 2)
    g = torch.Generator().manual_seed(0)
    z = list(
        sample_product(
            mixture.denoise, x, λ, torch.tensor(levels, dtype=torch.float64), "explicit", solver="euler", generator=g
        )
    )
    growth = float(z[-1].std(0).norm() / z[0].std(0).norm())
    assert growth > 100 if explodes else growth < 0.01
    assert last(mixture.denoise, x, λ, torch.tensor(levels, dtype=torch.float64), "exponential").std(0).norm() < 0.01


@pytest.mark.parametrize("λ", [0.2, 0.6, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_exact_sampler_has_the_products_moments(λ, seed):
    """Mean and covariance within 5 standard errors of n draws, plus 1 % of the spread for 64 Heun steps."""
    n, x = 3000, draw(seed, 2)
    y = last(SMOOTH.denoise, x.expand(n, 2), λ, karras_sigmas(64, 1e-3, 20), "exact", seed)
    q = SMOOTH.product(x, λ)
    mean = q.weights @ q.means
    outer = torch.einsum("ki,kj->kij", q.means - mean, q.means - mean)
    covariance = torch.einsum("k,kij->ij", q.weights, q.covariances + outer)
    variance = covariance.diagonal()
    allowed = 5 * (variance / n).sqrt() + 0.01 * variance.sqrt()
    assert ((y.mean(0) - mean).abs() < allowed).all()
    fourth = ((y - mean)[:, :, None] * (y - mean)[:, None]).var(0)  # of the products whose mean is the covariance
    assert ((y.T.cov() - covariance).abs() < 5 * (fourth / n).sqrt() + 0.01 * variance.max()).all()


def test_one_call_more_than_the_ordinary_sampler_and_the_same_result_as_on_the_product_denoiser():
    x, sigmas = draw(0, 3, 2), karras_sigmas(8, 0.01, 5)
    for solver, calls in (("euler", 8), ("heun", 15)):
        denoise = counted(guided(SMOOTH.denoise, random_mixture(2).denoise, 2.0))
        g = torch.Generator().manual_seed(0)
        states = list(sample_product(denoise, x, 0.4, sigmas, generator=g, solver=solver))
        assert denoise.calls == 2 * (calls + 1)
        assert len(states) == 9
        start = denoise(x, 0.4) + 5 * draw(0, 3, 2)
        by_hand = list(sample(product_denoiser(denoise, x, 0.4), start, sigmas, solver))
        torch.testing.assert_close(torch.stack(states), torch.stack(by_hand))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_wide_kernel_leaves_plain_sampling(kernel):
    """Invariant 4 of docs/invariants.md. The exact sampler starts its noise at D(x; λ), which becomes the mean of p."""
    x, sigmas = draw(0, 9, 2), karras_sigmas(16, 0.01, 5)
    offset = SMOOTH.weights @ SMOOTH.means if kernel == "exact" else torch.zeros(2, dtype=torch.float64)
    *_, plain = sample(SMOOTH.denoise, offset + 5 * draw(0, 9, 2), sigmas)
    for wide in (1e7,) if kernel == "exact" else (1e7, math.inf):
        torch.testing.assert_close(last(SMOOTH.denoise, x, wide, sigmas, kernel), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", ["exact", "exponential"])
def test_a_narrow_kernel_returns_x(kernel):
    """Invariant 4 of docs/invariants.md, where p is positive and continuous."""
    x, sigmas = SMOOTH.means[:3], karras_sigmas(16, 0.01, 5)
    torch.testing.assert_close(last(SMOOTH.denoise, x, 1e-6, sigmas, kernel), x, rtol=0, atol=1e-5)


def test_a_narrow_kernel_returns_the_nearest_datum():
    """Invariant 4 of docs/invariants.md, for a training set."""
    data, x = draw(2, 30, 2), draw(3, 9, 2)
    got = last(IdealDenoiser(data), x, 1e-4, karras_sigmas(16, 0.01, 5), "exact")
    torch.testing.assert_close(got, data[torch.cdist(x, data).argmin(-1)])


def literal(denoise, c: list[Tensor], λ: float, levels: list[float], decays: list[float], z: Tensor) -> Tensor:
    """Eq. 15 in Euler steps, with the kernel's decay of each step given."""
    z = c[0] + (z - c[0]) * decays[0]
    for i, decay in enumerate(decays):
        here, there = levels[i], levels[i + 1]
        z = z + (there - here) * (z - denoise(z, here)) / here
        z = c[i + 1] + (z - c[i + 1]) * decay
    return z


def test_the_exponential_kernel_and_its_start_written_out():
    x, λ, levels = draw(1, 5, 2), 0.7, [3.0, 2.0, 1.2, 0.5, 0.0]
    decays = [math.exp(-(a**2 - b**2) / 2 / λ**2) for a, b in pairwise(levels)]
    by_hand = literal(SMOOTH.denoise, [x] * 5, λ, levels, decays, 3 * draw(0, 5, 2))
    got = last(SMOOTH.denoise, x, λ, torch.tensor(levels, dtype=torch.float64), "exponential", solver="euler")
    torch.testing.assert_close(got, by_hand, rtol=1e-12, atol=1e-12)


def test_the_interval_clips_the_kernels_time():
    """Above and below it nothing, inside the whole step, a share of a step that straddles an end."""
    x, λ, levels = draw(1, 5, 2), 0.7, [3.0, 2.0, 1.2, 0.5, 0.1]
    squares = [0.0, 1.5**2 - 1.2**2, 1.2**2 - 0.9**2, 0.0]
    by_hand = literal(SMOOTH.denoise, [x] * 5, λ, levels, [math.exp(-s / 2 / λ**2) for s in squares], 3 * draw(0, 5, 2))
    sigmas = torch.tensor(levels, dtype=torch.float64)
    got = last(SMOOTH.denoise, x, λ, sigmas, "exponential", solver="euler", interval=(0.9, 1.5))
    torch.testing.assert_close(got, by_hand, rtol=1e-12, atol=1e-12)
    everywhere = last(SMOOTH.denoise, x, λ, sigmas, "exponential", interval=(0.0, 99.0))
    assert torch.equal(everywhere, last(SMOOTH.denoise, x, λ, sigmas, "exponential"))


@pytest.mark.parametrize("top", [0.5, 1.5, 5.0, 6.0, 80.0])
def test_an_interval_that_spans_all_levels_changes_nothing(top):
    mixture, x, sigmas = random_mixture(0), torch.zeros(3, 2, dtype=torch.float64), karras_sigmas(8, 0.002, top)
    ends = []
    for interval in ((0.0, top), None):
        g = torch.Generator().manual_seed(0)
        ends.append(
            list(sample_product(mixture.denoise, x, 0.3, sigmas, "exponential", interval=interval, generator=g))[-1]
        )
    assert torch.equal(*ends)


def test_above_the_interval_the_start_is_plain_noise():
    """Also where the first step straddles the interval's end."""
    x, sigmas = draw(1, 5, 2), torch.tensor([3.0, 2.0, 0.0])
    for interval, plain in (((0.5, 1.5), True), ((0.5, 2.5), True), ((0.5, 3.0), False)):
        g = torch.Generator().manual_seed(0)
        start = next(sample_product(SMOOTH.denoise, x, 0.7, sigmas, "exponential", interval=interval, generator=g))
        assert torch.allclose(start, 3 * draw(0, 5, 2), rtol=1e-12) == plain


def test_the_papers_kernel_with_squared_noise_as_time_is_the_heat_clock():
    """t = σ² and λ_paper = √2 λ; with t = σ or steps no constant does it."""
    x, λ, sigmas = draw(1, 5, 2), 0.7, karras_sigmas(12, 0.01, 4)
    heat = last(SMOOTH.denoise, x, λ, sigmas, "exponential")
    paper = last(SMOOTH.denoise, x, math.sqrt(2) * λ, sigmas, "exponential", clock=lambda sigma: sigma**2)
    torch.testing.assert_close(paper, heat, rtol=1e-12, atol=1e-12)
    linear = last(SMOOTH.denoise, x, λ, sigmas, "exponential", clock=lambda sigma: sigma)
    assert (linear - heat).norm(dim=-1).min() > 1e-3


def test_the_centre_may_be_the_inversion_of_x():
    """One centre for each noise level, so that c_{i+1} meets the state after step i."""
    x, λ, levels = draw(1, 5, 2), 0.7, [3.0, 2.0, 1.2, 0.5, 0.1]
    path = list(invert(SMOOTH.denoise, x, torch.tensor(levels, dtype=torch.float64), "euler"))[::-1]
    decays = [math.exp(-(a**2 - b**2) / 2 / λ**2) for a, b in pairwise(levels)]
    by_hand = literal(SMOOTH.denoise, path, λ, levels, decays, 3 * draw(0, 5, 2))
    got = last(
        SMOOTH.denoise, x, λ, torch.tensor(levels, dtype=torch.float64), "exponential", solver="euler", centre=path
    )
    torch.testing.assert_close(got, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ["exact", "exponential"])
def test_a_bandwidth_for_each_point_and_samples_on_the_left(kernel):
    x, sigmas, λ = draw(1, 5, 2), karras_sigmas(12, 0.01, 4), torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6])
    start = 4 * draw(0, 3, 5, 2)
    many = last(SMOOTH.denoise, x.expand(3, 5, 2), λ[None], sigmas, kernel, start=start)
    assert many.shape == (3, 5, 2)
    for n in range(3):
        for b in range(5):
            one = last(SMOOTH.denoise, x[b], float(λ[b]), sigmas, kernel, start=start[n, b])
            torch.testing.assert_close(many[n, b], one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", ["exact", "exponential"])
@pytest.mark.parametrize("data", [[[0.3, -0.2]], [[0.3, -0.2]] * 7], ids=["one datum", "seven times the same"])
def test_a_single_datum_is_always_found(kernel, data):
    data = torch.tensor(data, dtype=torch.float64)
    for λ in (1e-3, 0.1, 10.0):
        y = last(IdealDenoiser(data), draw(1, 5, 2), λ, karras_sigmas(16, 1e-3, 5), kernel)
        assert y.isfinite().all()
        if kernel == "exact":
            torch.testing.assert_close(y, data[:1].expand(5, 2))


@pytest.mark.parametrize("kernel", ["exact", "exponential"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_far_away_stay_finite(kernel, dtype):
    x = torch.tensor([[1e6, -1e6], [1e6, 0]], dtype=dtype)
    for denoise in (SMOOTH.denoise, IdealDenoiser(draw(0, 20, 2))):
        y = last(denoise, x, 0.3, karras_sigmas(16, 1e-3, 5), kernel)
        assert y.dtype == torch.promote_types(dtype, torch.float32)
        assert y.isfinite().all()
    if kernel == "exact":
        nearest = draw(0, 20, 2).to(y)
        assert torch.cdist(y, nearest).amin(-1).max() < 1e-5


@pytest.mark.parametrize("kernel", ["exact", "exponential"])
def test_float32_follows_float64(kernel):
    x, start, sigmas = draw(1, 20, 2), 5 * draw(0, 20, 2), karras_sigmas(16, 1e-3, 5)
    wide, single = (last(SMOOTH.denoise, y, 0.3, sigmas, kernel, start=start.to(y)) for y in (x, x.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wide, rtol=1e-4, atol=1e-4)


def test_no_graph_is_kept_and_a_seed_repeats():
    x, sigmas = draw(1, 3, 2).requires_grad_(), karras_sigmas(4, 0.01, 2)
    for kernel in KERNELS:
        y = last(SMOOTH.denoise, x, 0.5, sigmas, kernel)
        assert not y.requires_grad
        assert torch.equal(y, last(SMOOTH.denoise, x, 0.5, sigmas, kernel))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "implicit"}, "kernel is 'implicit'; it may be one of exact, exponential, explicit"),
        ({"solver": "rk4"}, "solver is 'rk4'; it may be one of heun, euler"),
        ({"bandwidth": 0.0}, r"bandwidth is 0\.0; it must be > 0"),
        ({"bandwidth": -1.0}, r"bandwidth is -1\.0; it must be > 0"),
        ({"bandwidth": math.nan}, "bandwidth is nan; it must be > 0"),
        ({"bandwidth": math.inf}, "bandwidth is inf; for kernel='exact'.* must be finite"),
        ({"bandwidth": torch.ones(4)}, r"bandwidth has shape \(4,\); it must be a prefix of \(3, 2\)"),
        ({"sigmas": torch.tensor([0.1, 1.0])}, "sigmas are .* strictly descending"),
        ({"clock": "steps", "kernel": "exponential"}, "clock is 'steps'; it may be 'heat' or a function of sigma"),
        ({"clock": lambda s: -s, "kernel": "exponential"}, "clock must be finite and increase with sigma"),
        ({"clock": lambda s: math.nan, "kernel": "exponential"}, "clock must be finite and increase with sigma"),
        ({"clock": lambda s: s}, "clock, interval and centre belong to kernel='exponential'; kernel is 'exact'"),
        ({"interval": (0.1, 1.0), "kernel": "explicit"}, "interval .* kernel is 'explicit'"),
        ({"centre": [torch.zeros(3, 2)] * 5}, "centre belong to kernel='exponential'"),
        *[
            ({"interval": ends, "kernel": "exponential"}, r"interval is .* must be \(low, high\) and overlap 0 to 2")
            for ends in ((1.0, 0.5), (1.0, 1.0), (2.0, 3.0), (-2.0, 0.0), (math.nan, 1.0))
        ],
        ({"centre": [torch.zeros(3, 2)] * 4, "kernel": "exponential"}, "centre has 4 states .* one for each of the 5"),
        ({"centre": [torch.zeros(2)] * 5, "kernel": "exponential"}, r"shapes \[\(2,\)\].* x's shape \(3, 2\)"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(options, message):
    usual = {"x": torch.zeros(3, 2), "bandwidth": 0.5, "sigmas": karras_sigmas(4, 0.01, 2)}
    with pytest.raises(ValueError, match=message):
        sample_product(SMOOTH.denoise, **(usual | options))


@pytest.mark.parametrize("interval", [None, (0.5, 2.0)])
@pytest.mark.parametrize("λ", [1e-25, 1e-200])
def test_a_bandwidth_whose_square_underflows_holds_the_sample_at_x(λ, interval):
    """In float32 λ² is 0 below 1e-23; outside the interval, where no time passes, 0/λ² must stay 0."""
    for dtype in (torch.float32, torch.float64):
        if λ > torch.finfo(dtype).tiny:
            x = draw(1, 5, 2).to(dtype)
            y = last(SMOOTH.denoise, x, λ, karras_sigmas(16, 1e-3, 5), "exponential", interval=interval)
            assert y.isfinite().all()
            assert interval or torch.equal(y, x)
