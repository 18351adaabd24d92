"""Points distilled by Adam, against the loop written out."""

from __future__ import annotations

import pytest
import torch

from msd_teach import SDS, MeanShift, eight_gaussians
from msd_teach.plane.points import distill_points
from msd_teach.schedules import linear


def test_points_move_as_in_a_loop_of_adam():
    """Adam written out, on the gradient x − D(x; λ) of mean shift, divided by the number of points."""
    p, rate = eight_gaussians(), 0.05
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start, y, first, second = x.clone(), x.clone(), 0.0, 0.0
    method = MeanShift(linear(1.0, 0.1))
    for step, (moved, info) in enumerate(distill_points(x, p.denoise, method, 10, rate)):
        gradient = (y - p.denoise(y, 1.0 - 0.1 * step)) / len(x)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        t = step + 1
        y = y - rate * first / (1 - 0.9**t) / ((second / (1 - 0.999**t)) ** 0.5 + 1e-8)
        torch.testing.assert_close(moved, y, rtol=1e-9, atol=1e-9)
        assert (info.step, info.calls) == (step, t)
    assert torch.equal(x, start)


def test_states_are_kept_apart_and_chance_repeats():
    p, x = eight_gaussians(), torch.zeros(3, 2)
    runs = [
        [state for state, _ in distill_points(x, p.denoise, SDS(), 4, generator=torch.Generator().manual_seed(0))]
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(*runs, strict=True))
    assert not torch.equal(runs[0][0], runs[0][1])
    with pytest.raises(ValueError, match=r"steps is 0"):
        distill_points(x, p.denoise, SDS(), 0)
