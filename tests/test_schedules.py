import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msd_teach.sampling import vp_sigma
from msd_teach.schedules import (
    annealed,
    chain_rule_weight,
    check_falling,
    cosine,
    dreamfusion_weight,
    geometric,
    linear,
    literal_weight,
    uniform_sigma,
    uniform_time,
    unit_weight,
)

u = torch.linspace(0, 1, 101, dtype=torch.float64)


@given(start=st.floats(1e-3, 1e3), share=st.floats(1e-4, 1))
def test_schedules_fall_from_start_to_end(start, share):
    end = start * share
    for kind in (linear, geometric, cosine):
        schedule = kind(start, end)
        values = [schedule(i / 50) for i in range(51)]
        assert values[0] == pytest.approx(start, rel=1e-12)
        assert values[-1] == pytest.approx(end, rel=1e-12)
        assert all(now <= then * (1 + 1e-12) for then, now in pairwise(values))


def test_the_middle_tells_the_schedules_apart():
    assert linear(4, 1)(0.5) == pytest.approx(2.5)
    assert [linear(4, 1, until=0.3)(t) for t in (0, 0.15, 0.3, 1)] == pytest.approx([4, 2.5, 1, 1])
    assert geometric(4, 1)(0.5) == pytest.approx(2)
    assert cosine(4, 1)(0.25) == pytest.approx(1 + 3 * (1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("kind", [linear, geometric, cosine])
@pytest.mark.parametrize("ends", [(0.1, 0.2), (1, 0), (1, -1), (math.inf, 1), (math.nan, 1), (1, math.nan)])
def test_schedules_that_rise_or_reach_zero_are_refused(kind, ends):
    said = r"start, end are .*; they must be 0 < end <= start|(start|end) is (inf|nan); it must be a number, finite"
    with pytest.raises(ValueError, match=said):
        kind(*ends)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (lambda p: 1 + p, "bandwidth is 1.00391 at progress 0.004"),
        (lambda p: 1 - p, "bandwidth is 0 at progress 1.000"),
        (lambda p: 1 + 0.1 * math.cos(40 * p), "bandwidth is"),
        (lambda p: math.nan, "bandwidth is nan at progress 0.000"),
        (lambda p: math.inf, "bandwidth is inf at progress 0.000"),
    ],
)
def test_any_function_may_be_a_schedule_if_it_falls(schedule, said):
    check_falling(lambda p: 1.0, "bandwidth")
    with pytest.raises(ValueError, match=f"{said}.*must be positive and may never increase"):
        check_falling(schedule, "bandwidth")
    with pytest.raises(ValueError, match="schedule is"):
        annealed(schedule)


@pytest.mark.parametrize("kind", [linear, geometric, cosine])
def test_a_level_schedule_is_allowed_and_ends_where_it_should(kind):
    for level in (0.003, 0.05, 0.3, 1 / 3):
        check_falling(kind(level, level), "bandwidth")
        assert kind(0.7, level)(1.0) == level


def test_a_number_is_no_schedule():
    with pytest.raises(ValueError, match=r"bandwidth is 0\.1; it must be a function of progress"):
        check_falling(0.1, "bandwidth")  # pyright: ignore[reportArgumentType]


def test_laws_are_inverse_distribution_functions():
    torch.testing.assert_close(uniform_sigma()(u, 0.3), 0.002 + 4.998 * u)
    torch.testing.assert_close(uniform_time()(u, 0.3), vp_sigma(0.02 + 0.96 * u))
    law = annealed(linear(2, 1))
    assert (law(u, 0.25) == 1.75).all()
    assert law(u, 0.25).shape == u.shape


def test_laws_are_refused_outside_their_range():
    for low, high in ((0, 1), (2, 1)):
        with pytest.raises(ValueError, match=f"low, high are {low}, {high}; they must be 0 < low <= high"):
            uniform_sigma(low, high)
    for low, high in ((1, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError, match=r"(low|high) is (inf|nan); it must be a number, finite"):
            uniform_sigma(low, high)
    for low, high in ((-0.1, 0.5), (0.5, 0.5), (0.2, 1.1)):
        with pytest.raises(ValueError, match=f"low, high are {low}, {high}; they must be 0 <= low < high <= 1"):
            uniform_time(low, high)


def test_weights_are_those_of_the_variance_preserving_formulas():
    """ᾱ = 1/(1 + σ²), α = √ᾱ and σ_t/α_t = σ; the weight multiplies x − D, and ε̂ − n = (x − D)/σ."""
    sigma = vp_sigma(u)
    alpha_bar = 1 / (1 + sigma**2)
    alpha = alpha_bar.sqrt()
    torch.testing.assert_close(dreamfusion_weight(sigma), (1 - alpha_bar) / sigma)
    torch.testing.assert_close(chain_rule_weight(sigma), (1 - alpha_bar) * alpha / sigma)
    torch.testing.assert_close(literal_weight(sigma), alpha**2 / sigma)
    assert (unit_weight(sigma) == 1).all()


def test_vp_sigma_is_stable_diffusions_schedule():
    """The values of the scaled-linear schedule, .00085 to .012 in 1000 steps, to the digits that are quoted for it."""
    want = {0: 0.029, 100: 0.344, 250: 0.696, 500: 1.618, 750: 4.10, 980: 13.04, 999: 14.61}
    for step, sigma in want.items():
        assert float(vp_sigma(torch.tensor(step / 999, dtype=torch.float64))) == pytest.approx(sigma, rel=0.02)
    assert (vp_sigma(u).diff() > 0).all()
    torch.testing.assert_close(vp_sigma(torch.tensor([-1.0, 2.0])), vp_sigma(torch.tensor([0.0, 1.0])))
    with pytest.raises(ValueError, match="t is nan; it must be from 0 to 1"):
        vp_sigma(math.nan)  # pyright: ignore[reportArgumentType]
