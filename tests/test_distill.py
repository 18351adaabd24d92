import math

import pytest
import torch
from reference import random_mixture
from torch import Tensor

from msd_teach import (
    MSD,
    SDS,
    IdealDenoiser,
    MeanShift,
    Rendered,
    Target,
    counted,
    distill,
    guided,
    karras_sigmas,
)
from msd_teach.schedules import linear

MIXTURE, OTHER = random_mixture(1, thinnest=0.2), random_mixture(2, thinnest=0.2)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(seed: int = 0, n: int = 5) -> Tensor:
    return draw(seed, n, 2).requires_grad_()


def pull(value: Tensor | float, weight: Tensor | float = 1.0, level: float = 1.0):
    """A method whose target is always the same."""
    return lambda denoise, x, progress, generator: Target(torch.as_tensor(value).expand_as(x).to(x), weight, 1, level)


@pytest.mark.parametrize(
    "method",
    [
        MeanShift(linear(0.5, 0.01)),
        SDS(samples=2),
        MSD("exact", linear(0.5, 0.01), karras_sigmas(4, 0.01, 2)),
    ],
    ids=["mean shift", "SDS", "MSD"],
)
def test_equals_a_loop_written_by_hand(method):
    """Gradient w (x − target)/batch, through a linear map and Adam; progress runs from 0 to 1."""
    map_, θ, steps = draw(1, 3, 2), draw(0, 5, 3), 7
    ours, theirs = θ.clone().requires_grad_(), θ.clone().requires_grad_()
    run = distill(
        lambda g: ours @ map_, torch.optim.Adam([ours], 0.1), MIXTURE.denoise, method, steps, generator=seeded()
    )
    infos = list(run)
    g, optimizer, calls = seeded(), torch.optim.Adam([theirs], 0.1), 0
    for k in range(steps):
        x = (theirs @ map_).detach()
        target = method(MIXTURE.denoise, x, k / (steps - 1), g)
        w = torch.as_tensor(target.weight, dtype=x.dtype).expand(5)
        theirs.grad = (w[:, None] * (x - target.value) / 5) @ map_.T
        optimizer.step()
        calls += target.calls
        squares = (x - target.value).square().sum(1)
        assert infos[k].step == k
        assert infos[k].loss == pytest.approx(float((w * squares).mean() / 2))
        assert infos[k].level == pytest.approx(target.level)
        assert infos[k].shift_norm == pytest.approx(float(squares.sqrt().mean()))
        assert infos[k].calls == calls
    torch.testing.assert_close(ours, theirs)
    assert len(infos) == steps


def test_sums_over_an_event_and_averages_over_the_batch():
    """One gradient step of length 1 moves every point by w (target − x)/batch, however large its event."""
    for shape in ((4, 2), (4, 3, 8, 8), (1, 5)):
        θ = torch.zeros(shape, requires_grad=True)
        optimizer = torch.optim.SGD([θ], 1.0)
        info = next(distill(lambda g, θ=θ: θ, optimizer, MIXTURE.denoise, pull(2.0, weight=3.0), 1))
        torch.testing.assert_close(θ.detach(), torch.full(shape, 3 * 2 / shape[0]))
        event = math.prod(shape[1:])
        assert info.loss == pytest.approx(3 * 4 * event / 2)
        assert info.shift_norm == pytest.approx(2 * math.sqrt(event))
    θ = torch.zeros(2, 3, requires_grad=True)
    weight = torch.tensor([1.0, 0.5])
    next(distill(lambda g: θ, torch.optim.SGD([θ], 1.0), MIXTURE.denoise, pull(2.0, weight), 1))
    torch.testing.assert_close(θ.detach(), torch.tensor([[1.0] * 3, [0.5] * 3]))


def test_mean_shift_by_gradient_descent_reaches_a_mode():
    θ = points()
    optimizer = torch.optim.SGD([θ], 5.0)  # the batch size: a full mean-shift step
    run = distill(lambda g: θ, optimizer, MIXTURE.denoise, MeanShift(linear(0.3, 0.3)), 500)
    assert list(run)[-1].shift_norm < 1e-6
    assert MIXTURE.score(θ.detach(), 0.3).norm(dim=-1).max() < 1e-4


def test_stops_before_the_first_level_below_the_last():
    θ = points()
    before, levels = [], []
    for info in distill(
        lambda g: θ, torch.optim.SGD([θ], 1.0), MIXTURE.denoise, MeanShift(linear(1.0, 0.1)), 10, stop_level=0.35
    ):
        levels.append(info.level)
        before.append(θ.detach().clone())
    assert levels == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert torch.equal(θ.detach(), before[-1]), "the step below the level is not taken"


def test_stops_after_the_first_small_shift():
    θ = torch.full((3, 2), 8.0, dtype=torch.float64, requires_grad=True)
    shifts = [
        info.shift_norm
        for info in distill(lambda g: θ, torch.optim.SGD([θ], 1.5), MIXTURE.denoise, pull(0.0), 100, tolerance=0.1)
    ]
    assert len(shifts) < 10
    assert shifts[-1] < 0.1 <= shifts[-2]


def test_a_rendered_denoiser_and_penalty_take_part():
    θ = points()
    first = θ.detach().clone()

    def render(generator: torch.Generator | None) -> Rendered:
        return Rendered(θ, OTHER.denoise, 0.5 * θ.square().sum())

    info = next(distill(render, torch.optim.SGD([θ], 1.0), MIXTURE.denoise, MeanShift(linear(0.3, 0.3)), 1))
    shift = OTHER.denoise(first, 0.3) - first
    torch.testing.assert_close(θ.detach(), first + shift / 5 - first)
    assert info.loss == pytest.approx(float(shift.square().sum() / 10 + first.square().sum() / 2))


@pytest.mark.parametrize("where", ["x", "target", "penalty"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_a_number_stops_the_run_and_leaves_the_parameters(where, bad):
    θ = torch.ones(3, 2, requires_grad=True)
    optimizer = torch.optim.Adam([θ], 0.1)
    count = iter(range(99))

    def render(generator: torch.Generator | None) -> Rendered:
        broken = next(count) == 2
        x = θ * bad if broken and where == "x" else θ
        return Rendered(x, penalty=bad if broken and where == "penalty" else 0.0)

    def method(denoise, x, progress, generator) -> Target:
        return Target(x * bad if where == "target" and progress == 1 else 0 * x, 1.0, 1, 0.25)

    run = distill(render, optimizer, MIXTURE.denoise, method, 3)
    assert [next(run).step, next(run).step] == [0, 1]
    kept = θ.detach().clone()
    with pytest.raises(FloatingPointError, match=r"step 2: .* not finite \(function, level 0\.25\)"):
        next(run)
    assert torch.equal(θ.detach(), kept)
    assert optimizer.state[θ]["step"] == 2


def test_deterministic_for_a_seed():
    def end(seed: int) -> Tensor:
        θ = points()
        optimizer = torch.optim.Adam([θ], 0.1)
        sigmas = karras_sigmas(3, 0.01, 2)
        method = MSD("exponential", linear(0.5, 0.1), sigmas, 2)
        list(
            distill(
                lambda g: θ + 0.01 * torch.randn(5, 2, generator=g),
                optimizer,
                MIXTURE.denoise,
                method,
                5,
                generator=seeded(seed),
            )
        )
        return θ.detach()

    assert torch.equal(end(3), end(3))
    assert not torch.equal(end(3), end(4))


def test_after_step_sees_the_batch_of_every_step():
    θ, seen = points(), []

    class Learner:
        def __call__(self, denoise, x: Tensor, progress: float, generator) -> Target:
            return Target(torch.zeros_like(x), 1.0, 1, 1.0)

        def after_step(self, x: Tensor, generator: torch.Generator | None) -> None:
            assert not x.requires_grad
            seen.append((x.clone(), generator))

    g, rendered = seeded(), [θ.detach().clone()]
    for _ in distill(lambda g: 1.0 * θ, torch.optim.SGD([θ], 1.0), MIXTURE.denoise, Learner(), 3, generator=g):
        rendered.append(θ.detach().clone())
    torch.testing.assert_close(torch.stack([x for x, _ in seen]), torch.stack(rendered[:3]))
    assert all(generator is g for _, generator in seen)


def test_guided_calls_are_counted_once_an_item():
    denoise = counted(guided(MIXTURE.denoise, OTHER.denoise, 4.0))
    θ = points()
    *_, info = distill(lambda g: θ, torch.optim.SGD([θ], 1.0), denoise, SDS(samples=3), 4)
    assert info.calls == 4 * 3 * 2
    assert denoise.calls == 4 * 2, "three samples went in one batch"


def test_the_target_carries_no_gradient():
    """A denoiser that could be differentiated is not: the update is x − target, not its Jacobian's."""
    θ, network = points(), torch.nn.Linear(2, 2).double()
    info = next(
        distill(lambda g: θ, torch.optim.SGD([θ], 1.0), lambda z, sigma: network(z), MeanShift(linear(1.0, 1.0)), 1)
    )
    assert info.step == 0
    assert network.weight.grad is None


def test_one_datum_and_a_level_of_zero_steps():
    datum = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    θ = points()
    list(distill(lambda g: θ, torch.optim.SGD([θ], 5.0), IdealDenoiser(datum), MeanShift(linear(1.0, 0.1)), 2))
    torch.testing.assert_close(θ.detach(), datum.expand(5, 2))
    assert list(distill(lambda g: θ, torch.optim.SGD([θ], 5.0), MIXTURE.denoise, pull(0.0), 5, stop_level=2.0)) == []


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused_at_once(steps):
    θ = points()
    with pytest.raises(ValueError, match=f"steps is {steps}; it must be at least 1"):
        distill(lambda g: θ, torch.optim.SGD([θ], 1.0), MIXTURE.denoise, SDS(), steps)


def test_a_render_without_a_finite_gradient_stops_the_run_before_it_does_harm():
    p = torch.zeros(2, 2, requires_grad=True)
    run = distill(
        lambda _: p.abs().sqrt(), torch.optim.SGD([p], 0.1), random_mixture(0).denoise, MeanShift(linear(0.3, 0.1)), 3
    )
    with pytest.raises(FloatingPointError, match=r"step 0: the gradient of render is not finite \(MeanShift, level"):
        next(run)
    assert torch.equal(p.detach(), torch.zeros(2, 2))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, requires_grad=True), torch.zeros(0, 2, requires_grad=True), torch.zeros(3, 2)]
)
def test_what_render_returns_is_looked_at(x):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    with pytest.raises(ValueError, match=r"render returned x of shape .* it must be \(batch >= 1, \*event\)"):
        next(distill(lambda _: x, optimizer, random_mixture(0).denoise, MeanShift(linear(0.3, 0.1)), 3))
