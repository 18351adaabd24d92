import math
from typing import Any

import pytest
import torch
from reference import random_mixture
from torch import Tensor

from msd_teach import (
    ISM,
    MSD,
    PFD,
    SDI,
    SDS,
    VSD,
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
from msd_teach.targets import ideal_particles

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


@pytest.mark.parametrize("where", ["x", "target", "weight", "penalty"])
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
        now = progress == 1
        return Target(
            x * bad if now and where == "target" else 0 * x, bad if now and where == "weight" else 1.0, 1, 0.25
        )

    run = distill(render, optimizer, MIXTURE.denoise, method, 3)
    assert [next(run).step, next(run).step] == [0, 1]
    kept = θ.detach().clone()
    with pytest.raises(FloatingPointError, match=r"step 2 \(function, level 0\.25\): .* not finite"):
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


def test_nan_in_what_a_method_learns_names_the_step():
    class Learner:
        def __call__(self, denoise, x: Tensor, progress: float, generator) -> Target:
            return Target(torch.zeros_like(x), 1.0, 1, 1.0)

        def after_step(self, denoise, x: Tensor, generator: torch.Generator | None) -> int:
            raise FloatingPointError("the gradient is not finite")

    θ = points()
    with pytest.raises(FloatingPointError, match=r"step 0 \(Learner, level 1\): the gradient is not finite"):
        list(distill(lambda g: 1.0 * θ, torch.optim.SGD([θ], 1.0), MIXTURE.denoise, Learner(), 2))


def test_after_step_sees_the_batch_of_every_step():
    θ, seen = points(), []

    class Learner:
        def __call__(self, denoise, x: Tensor, progress: float, generator) -> Target:
            return Target(torch.zeros_like(x), 1.0, 1, 1.0)

        def after_step(self, denoise, x: Tensor, generator: torch.Generator | None) -> int:
            assert denoise == OTHER.denoise
            assert not x.requires_grad
            seen.append((x.clone(), generator))
            return 5

    g, rendered = seeded(), [θ.detach().clone()]
    calls = []
    for info in distill(
        lambda g: Rendered(1.0 * θ, OTHER.denoise),
        torch.optim.SGD([θ], 1.0),
        MIXTURE.denoise,
        Learner(),
        3,
        generator=g,
    ):
        rendered.append(θ.detach().clone())
        calls.append(info.calls)
    assert calls == [6, 12, 18], "what a method spends on learning counts"
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


def test_a_target_that_hangs_on_parameters_is_held_fixed():
    """A denoiser that answers with a parameter of its own, or that switches gradients on inside: neither is trained."""
    answer, network = torch.nn.Parameter(draw(1, 5, 2)), torch.nn.Linear(2, 2).double()

    def differentiable(z: Tensor, sigma: float | Tensor) -> Tensor:
        with torch.enable_grad():
            return network(z)

    for denoise in (lambda z, sigma: answer, differentiable):
        θ = points()
        next(distill(lambda g, θ=θ: θ, torch.optim.SGD([θ], 1.0), denoise, MeanShift(linear(1.0, 1.0)), 1))
        assert not torch.equal(θ, points())
    assert answer.grad is None
    assert network.weight.grad is None


def test_one_datum_and_a_level_of_zero_steps():
    datum = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    θ = points()
    list(distill(lambda g: θ, torch.optim.SGD([θ], 5.0), IdealDenoiser(datum), MeanShift(linear(1.0, 0.1)), 2))
    torch.testing.assert_close(θ.detach(), datum.expand(5, 2))
    assert list(distill(lambda g: θ, torch.optim.SGD([θ], 5.0), MIXTURE.denoise, pull(0.0), 5, stop_level=2.0)) == []


@pytest.mark.parametrize("steps", [0, -1, 1e1, True])
def test_no_steps_are_refused_at_once(steps):
    θ = points()
    with pytest.raises(ValueError, match=f"steps is {steps}; it must be a whole number, at least 1"):
        distill(lambda g: θ, torch.optim.SGD([θ], 1.0), MIXTURE.denoise, SDS(), steps)


def test_a_render_without_a_finite_gradient_stops_the_run_before_it_does_harm():
    p = torch.zeros(2, 2, requires_grad=True)
    run = distill(
        lambda _: p.abs().sqrt(), torch.optim.SGD([p], 0.1), random_mixture(0).denoise, MeanShift(linear(0.3, 0.1)), 3
    )
    with pytest.raises(
        FloatingPointError, match=r"step 0 \(MeanShift, level 0.3\): the gradient of render is not finite"
    ):
        next(run)
    assert torch.equal(p.detach(), torch.zeros(2, 2))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, requires_grad=True), torch.zeros(0, 2, requires_grad=True), torch.zeros(3, 2)]
)
def test_what_render_returns_is_looked_at(x):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    with pytest.raises(ValueError, match=r"render returned x of shape .* it must be \(batch >= 1, \*event\)"):
        next(distill(lambda _: x, optimizer, random_mixture(0).denoise, MeanShift(linear(0.3, 0.1)), 3))


# ---------------------------------------------------------------- stopped and continued


class Learning:
    """A method with state: its target is a moving average of x, which after_step updates."""

    def __init__(self):
        self.mean = torch.zeros(2, dtype=torch.float64)

    def __call__(self, denoise, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return Target(denoise(self.mean + 0.1 * noise, 0.5 - 0.4 * progress), 1.0, 1, 0.5 - 0.4 * progress)

    def after_step(self, denoise, x: Tensor, generator: torch.Generator | None) -> int:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return 1


def interrupted(steps: int, stops: list[int], per_target: int, learning: bool) -> tuple[Tensor, tuple]:
    """A run of `steps`, whose every object is made anew from its saved state after each of `stops`."""
    θ, optimizer, g, method, done = points(), None, seeded(), Learning() if learning else SDS(samples=2), None
    optimizer = torch.optim.Adam([θ], 0.1)

    def render(generator: torch.Generator | None) -> Rendered:
        x = θ + 0.01 * torch.randn(5, 2, generator=generator, dtype=θ.dtype)
        return Rendered(x, penalty=1e-3 * θ.square().sum())

    while True:
        options = {"generator": g, "steps_per_target": per_target, "done": done}
        for info in distill(render, optimizer, MIXTURE.denoise, method, steps, **options):
            done = info
            if info.step in stops:
                break
        else:
            assert done is not None
            return θ.detach(), done._replace(seconds=0.0)
        stops = [stop for stop in stops if stop > done.step]
        states = optimizer.state_dict(), g.get_state()
        θ = θ.detach().clone().requires_grad_()
        optimizer, g = torch.optim.Adam([θ], 0.1), torch.Generator()
        optimizer.load_state_dict(states[0])
        g.set_state(states[1])
        if isinstance(method, Learning):
            mean, method = method.mean, Learning()
            method.mean = mean


@pytest.mark.parametrize("learning", [False, True], ids=["SDS", "a method that learns"])
@pytest.mark.parametrize("per_target", [1, 3])
def test_a_run_goes_on_where_it_was_stopped(per_target, learning):
    """Bit for bit, state and last record: after every step of a small run, and after random ones of a longer."""
    whole = interrupted(6, [], per_target, learning)
    for stop in range(5):
        assert_same(interrupted(6, [stop], per_target, learning), whole)
    long = interrupted(60, [], per_target, learning)
    stops = sorted(torch.randperm(59, generator=seeded(7))[:4].tolist())
    assert_same(interrupted(60, stops, per_target, learning), long)


def assert_same(run: tuple, other: tuple) -> None:
    assert torch.equal(run[0], other[0])
    assert run[1] == other[1]


def test_a_finished_run_stays_finished():
    θ = points()
    optimizer, pulled = torch.optim.SGD([θ], 1.5), pull(0.0)
    *_, last = distill(lambda g: θ, optimizer, MIXTURE.denoise, pulled, 100, tolerance=0.1)
    assert list(distill(lambda g: θ, optimizer, MIXTURE.denoise, pulled, 100, tolerance=0.1, done=last)) == []
    assert list(distill(lambda g: θ, optimizer, MIXTURE.denoise, pulled, last.step + 1, done=last)) == []
    again = next(distill(lambda g: θ, optimizer, MIXTURE.denoise, pulled, 100, done=last))
    assert (again.step, again.calls) == (last.step + 1, last.calls + 1)
    assert again.seconds > last.seconds > 0


# ---------------------------------------------------------------- several optimiser steps a target


def test_several_steps_a_target_use_the_same_target_and_the_same_cameras():
    """Against a loop by hand: one target, three Adam steps on renders with the random numbers of the first."""
    θ, other, g = points(), points(), seeded(3)
    optimizer, by_hand = torch.optim.Adam([θ], 0.1), torch.optim.Adam([other], 0.1)
    method = SDS(samples=2)
    infos = list(
        distill(
            lambda g: θ * (1 + torch.rand(2, generator=g, dtype=θ.dtype)), optimizer, MIXTURE.denoise, method, 4,
            generator=seeded(3), steps_per_target=3,
        )
    )  # fmt: skip
    for step in range(4):
        camera = 1 + torch.rand(2, generator=g, dtype=θ.dtype)
        target = method(MIXTURE.denoise, (other * camera).detach(), step / 3, g)
        loss = torch.zeros(())
        for _ in range(3):
            by_hand.zero_grad()
            w = torch.as_tensor(target.weight)[:, None]
            loss = (w * (other * camera - target.value).square()).sum() / 10
            loss.backward()
            by_hand.step()
        assert infos[step].loss == pytest.approx(loss.item())
    torch.testing.assert_close(θ, other)
    assert [info.calls for info in infos] == [2, 4, 6, 8], "the steps between targets ask no denoiser"
    with pytest.raises(ValueError, match=r"steps_per_target is 0; it must be a whole number"):
        distill(lambda g: θ, optimizer, MIXTURE.denoise, method, 4, steps_per_target=0)


def test_not_a_number_between_targets_names_the_optimiser_step():
    θ, count = points(), iter(range(99))
    run = distill(
        lambda g: θ * (math.nan if next(count) == 4 else 1.0), torch.optim.SGD([θ], 0.1), MIXTURE.denoise, SDS(), 3,
        steps_per_target=3,
    )  # fmt: skip
    next(run)
    with pytest.raises(FloatingPointError, match=r"step 1 \(SDS, .*\), optimiser step 2 of 3: the loss is not finite"):
        next(run)


def test_without_a_generator_the_cameras_stay_too():
    θ, seen = points(), []

    def render(generator: torch.Generator | None) -> Tensor:
        assert generator is None
        seen.append(torch.rand(()).item())
        return 1.0 * θ

    list(distill(render, torch.optim.SGD([θ], 0.1), MIXTURE.denoise, SDS(), 2, steps_per_target=3))
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5]


@pytest.mark.parametrize("generator", [None, seeded(3)], ids=["torch's own", "a generator"])
def test_a_render_that_draws_from_several_streams_is_asked_with_the_same_numbers(generator):
    """Cameras from the generator, dropout from torch's own stream; the run's later numbers stay as they were."""

    def run(per_target: int) -> list[tuple[float, float]]:
        θ, seen = points(), []
        torch.manual_seed(0)

        def render(g: torch.Generator | None) -> Tensor:
            seen.append((torch.rand((), generator=g).item(), torch.rand(()).item()))
            return 1.0 * θ

        if generator is not None:
            generator.manual_seed(3)
        options = {"generator": generator, "steps_per_target": per_target}
        list(distill(render, torch.optim.SGD([θ], 0.1), MIXTURE.denoise, SDS(), 3, **options))
        return seen

    assert run(3) == [numbers for numbers in run(1) for _ in range(3)]


def test_a_render_that_changes_its_shape_within_a_target_is_refused():
    """Five targets would broadcast against one x, and the run go on."""
    θ, sizes = points(), iter([5, 1])
    run = distill(
        lambda g: 1.0 * θ[: next(sizes)], torch.optim.SGD([θ], 0.1), MIXTURE.denoise, SDS(), 1, steps_per_target=2
    )
    with pytest.raises(ValueError, match=r"x of shape \(5, 2\) and then \(1, 2\); it must keep its shape"):
        next(run)


# ---------------------------------------------------------------- precision, records, arguments


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_methods_work_in_float32_whatever_x_is(dtype):
    θ = points().detach().to(dtype).requires_grad_()
    seen = set()

    def denoise(z: Tensor, sigma: float | Tensor) -> Tensor:
        seen.add(z.dtype)
        return MIXTURE.denoise(z.double(), sigma).to(z.dtype)

    grid = karras_sigmas(4, 0.01, 2)
    methods = [SDS(), SDI(), ISM(), PFD(), VSD(ideal_particles), MeanShift(linear(0.5, 0.1))]
    methods += [MSD(kernel, linear(0.5, 0.1), grid) for kernel in ("exact", "exponential")]
    for method in methods:
        next(distill(lambda g: 1.0 * θ, torch.optim.SGD([θ], 0.1), denoise, method, 1, generator=seeded()))
    assert seen == {torch.float32}


def test_the_record_has_the_penalty_and_the_seconds():
    θ = points()
    run = distill(
        lambda g: Rendered(θ, penalty=2 * θ.square().sum()), torch.optim.SGD([θ], 1e-3), MIXTURE.denoise, SDS(), 3
    )
    before, penalties, seconds = float(2 * θ.detach().square().sum()), [], []
    for info in run:
        penalties.append(info.penalty)
        seconds.append(info.seconds)
    assert penalties[0] == pytest.approx(before)
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_arguments_that_no_run_can_use_are_refused_by_name():
    θ = points()
    sgd, shift = torch.optim.SGD([θ], 1.0), MeanShift(linear(1.0, 0.1))
    for said, arguments in {
        r"optimizer is LBFGS, which asks for the loss": (
            lambda g: θ,
            torch.optim.LBFGS([θ]),
            MIXTURE.denoise,
            shift,
            2,
        ),
        r"optimizer is \[": (lambda g: θ, [θ], MIXTURE.denoise, shift, 2),
        r"denoise is GaussianMixture.*; give its \.denoise": (lambda g: θ, sgd, MIXTURE, shift, 2),
        r"denoise is None; it must be a function": (lambda g: θ, sgd, None, shift, 2),
        r"method is <class .*MeanShift.*; it must be called with settings": (
            lambda g: θ,
            sgd,
            MIXTURE.denoise,
            MeanShift,
            2,
        ),
        r"stop_level is nan; it must be a number": (lambda g: θ, sgd, MIXTURE.denoise, shift, 2, math.nan),
        r"tolerance is 'a'; it must be a number": (lambda g: θ, sgd, MIXTURE.denoise, shift, 2, None, "a"),
        r"done is 5; it must be the last StepInfo": (
            lambda g: θ,
            sgd,
            MIXTURE.denoise,
            shift,
            2,
            None,
            None,
            None,
            1,
            5,
        ),
    }.items():
        with pytest.raises(ValueError, match=said):
            distill(*arguments)  # type: ignore[arg-type]
    for said, render in {
        r"render returned a tuple; it must be a tensor x or Rendered": lambda g: (θ, 1),
        r"render returned a ndarray": lambda g: θ.detach().numpy(),
        r"render returned x of shape \(5, 2\), torch.complex128": lambda g: θ.to(torch.complex128),
    }.items():
        with pytest.raises(ValueError, match=said):
            next(distill(render, sgd, MIXTURE.denoise, shift, 2))  # type: ignore[arg-type]
    for method in (lambda *_: torch.zeros(5, 2), lambda *_: Target(torch.zeros(5, 1), 1.0, 1, 1.0)):
        with pytest.raises(ValueError, match=r"must give a Target whose value is like x, \(5, 2\)"):
            next(distill(lambda g: θ, sgd, MIXTURE.denoise, method, 2))  # type: ignore[arg-type]


def test_options_that_no_run_can_use_are_refused_at_once():
    θ = points()
    record = next(distill(lambda g: θ, torch.optim.SGD([θ], 0.1), MIXTURE.denoise, SDS(), 1))
    for said, options in {
        r"generator is 0; it must be a torch\.Generator or None": {"generator": 0},
        r"stop_level is -1; it must be a number": {"stop_level": -1},
        r"done\.step is -1; it must be a whole number, at least 0": {"done": record._replace(step=-1)},
        r"done\.step is 2\.0": {"done": record._replace(step=2.0)},
        r"done\.calls is None": {"done": record._replace(calls=None)},
        r"render is a Tensor; it must be a function": {"render": θ},
    }.items():
        arguments = {"render": lambda g: θ, "optimizer": torch.optim.SGD([θ], 0.1), "denoise": MIXTURE.denoise}
        with pytest.raises(ValueError, match=said):
            distill(**arguments | {"method": SDS(), "steps": 2} | options)


@pytest.mark.parametrize(
    ("rendered", "said"),
    [
        ({"denoise": MIXTURE}, r"denoise GaussianMixture.*; it must be a function"),
        ({"penalty": torch.ones(5)}, r"a penalty of shape \(5,\); it must be one real number"),
        ({"penalty": None}, r"a penalty None; it must be one real number"),
        ({"penalty": 1j}, r"a penalty 1j; it must be one real number"),
    ],
)
def test_what_comes_with_x_is_looked_at(rendered, said):
    θ = points()
    with pytest.raises(ValueError, match=f"render returned {said}"):
        next(distill(lambda g: Rendered(θ, **rendered), torch.optim.SGD([θ], 0.1), MIXTURE.denoise, SDS(), 1))


@pytest.mark.parametrize("calls", [2.5, -1, True, "a", torch.tensor(3)])
def test_calls_are_whole_numbers(calls):
    θ = points()

    class Learner:
        def __call__(self, denoise, x: Tensor, progress: float, generator) -> Target:
            return Target(torch.zeros_like(x), 1.0, 1, 1.0)

        def after_step(self, denoise, x: Tensor, generator: torch.Generator | None) -> int:
            return calls

    methods: dict[str, Any] = {
        "after_step": Learner(),
        "the target": lambda *_: Target(torch.zeros(5, 2), 1.0, calls, 1.0),
    }
    for said, method in methods.items():
        with pytest.raises(ValueError, match=f"calls of {said} is .*; it must be a whole number, at least 0"):
            next(distill(lambda g: 1.0 * θ, torch.optim.SGD([θ], 0.1), MIXTURE.denoise, method, 1))


@pytest.mark.parametrize("field", ["weight", "level"])
def test_a_target_of_other_fields_is_refused(field):
    θ, target = points(), Target(torch.zeros(5, 2), 1.0, 1, 0.5)._replace(**{field: None})
    method: Any = lambda *_: target  # noqa: E731
    with pytest.raises(ValueError, match=f"gave a target of {field} None; it must be a number"):
        next(distill(lambda g: 1.0 * θ, torch.optim.SGD([θ], 0.1), MIXTURE.denoise, method, 1))


def test_an_optimizer_of_other_parameters_is_refused():
    θ, other = points(), points()
    with pytest.raises(ValueError, match="optimizer has no parameter that render depends on"):
        next(distill(lambda g: 1.0 * θ, torch.optim.SGD([other], 0.1), MIXTURE.denoise, SDS(), 1))


def test_a_target_may_have_no_level_but_not_where_one_is_asked_for():
    θ = points()
    assert math.isnan(
        next(distill(lambda g: θ, torch.optim.SGD([θ], 0.1), MIXTURE.denoise, pull(0.0, level=math.nan), 2)).level
    )
    with pytest.raises(ValueError, match=r"stop_level is 0\.1, and .* has no level; leave it out"):
        next(
            distill(
                lambda g: θ, torch.optim.SGD([θ], 0.1), MIXTURE.denoise, pull(0.0, level=math.nan), 2, stop_level=0.1
            )
        )
