import copy
import dataclasses
import itertools
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import levels, random_mixture, seeds
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
    counted,
    guided,
    invert,
    karras_sigmas,
    product_denoiser,
    sample,
    sample_product,
)
from msd_teach.plane.landscape import sds_field, stationary_points
from msd_teach.sampling import LevelTable, vp_sigma
from msd_teach.schedules import (
    above,
    annealed,
    chain_rule_weight,
    dreamfusion_weight,
    geometric,
    linear,
    literal_weight,
    sigmas_around,
    uniform_sigma,
    uniform_time,
    unit_weight,
)
from msd_teach.targets import ideal_particles

MIXTURE, OTHER = random_mixture(1, thinnest=0.2), random_mixture(2, thinnest=0.2)
SMOOTH = random_mixture(1, thinnest=0.5)
SIGMAS = karras_sigmas(6, 0.01, 4)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def constant(level: float):
    return linear(level, level)


X = draw(0, 5, 2)


@pytest.mark.parametrize("weight", [dreamfusion_weight, chain_rule_weight, unit_weight])
@pytest.mark.parametrize("law", [uniform_sigma(), uniform_time(), annealed(constant(0.3))], ids=["σ", "t", "annealed"])
def test_the_mean_update_of_sds_is_the_quadrature(law, weight):
    """Invariant 8 of docs/invariants.md: w (x − target), averaged over draws, within 5 standard errors of the field."""
    target = SDS(law, weight)(MIXTURE.denoise, X.repeat_interleave(4000, 0), 0.5, seeded())
    weights = torch.as_tensor(target.weight)
    update = (weights[:, None] * (X.repeat_interleave(4000, 0) - target.value)).reshape(5, 4000, 2)
    error = update.mean(1) - sds_field(MIXTURE, X, law, weight, 0.5, levels=256)
    assert (error.abs() < 5 * update.std(1) / math.sqrt(4000)).all()


def test_sds_averages_its_samples():
    """N samples: the mean of w (x − D) is that of one sample, the variance 1/N of it."""
    x, updates = X[:1].expand(4000, 2), {}
    for n in (1, 8):
        target = SDS(uniform_sigma(), samples=n)(MIXTURE.denoise, x, 0.0, seeded(n))
        updates[n] = torch.as_tensor(target.weight)[:, None] * (x - target.value)
        assert target.calls == n
    spread = (updates[1].var(0) / 4000 + updates[8].var(0) / 4000).sqrt()
    assert ((updates[1].mean(0) - updates[8].mean(0)).abs() < 5 * spread).all()
    ratio = updates[1].var(0) / updates[8].var(0)
    assert ((ratio > 6.5) & (ratio < 9.5)).all(), ratio


@pytest.mark.parametrize("weight", [dreamfusion_weight, chain_rule_weight, literal_weight, unit_weight])
def test_sds_written_out(weight):
    """(1/N) Σ w(σᵢ) (x − D(x + σᵢ nᵢ; σᵢ)), from the same stream of random numbers."""
    g, n = seeded(), 3
    target = SDS(uniform_time(), weight, samples=n)(MIXTURE.denoise, X, 0.5, seeded())
    sigma = vp_sigma(0.02 + 0.96 * torch.rand(n, 5, dtype=torch.float64, generator=g))
    noise = torch.randn(n, 5, 2, dtype=torch.float64, generator=g)
    update = torch.zeros_like(X)
    for i in range(n):
        for b in range(5):
            s = float(sigma[i, b])
            update[b] += weight(sigma[i, b]) * (X[b] - MIXTURE.denoise(X[b] + s * noise[i, b], s)) / n
    torch.testing.assert_close(torch.as_tensor(target.weight)[:, None] * (X - target.value), update)
    assert target.level == pytest.approx(float(sigma.mean()))


def test_the_annealed_control_follows_msds_levels():
    schedule = geometric(0.5, 0.01)
    control = SDS(annealed(schedule), unit_weight)
    msd = MSD("exact", schedule, SIGMAS)
    for progress in (0.0, 0.3, 1.0):
        target = control(MIXTURE.denoise, X, progress, seeded())
        assert target.level == pytest.approx(msd(MIXTURE.denoise, X, progress, seeded()).level)
        assert (torch.as_tensor(target.weight) == 1).all()
        z = X + schedule(progress) * second_normal(5)
        torch.testing.assert_close(target.value, MIXTURE.denoise(z, schedule(progress)))


def second_normal(batch: int) -> Tensor:
    """The noise that follows the uniform draw of σ on the stream of seed 0."""
    g = seeded()
    torch.rand(1, batch, dtype=torch.float64, generator=g)
    return torch.randn(batch, 2, dtype=torch.float64, generator=g)


def test_vsd_of_one_particle_is_sds():
    """Invariant 12 of docs/invariants.md, draw by draw: the particle's own denoiser returns x itself."""
    for seed in range(20):
        x = draw(seed, 1, 2)
        vsd = VSD(ideal_particles, uniform_sigma())(MIXTURE.denoise, x, 0.0, seeded(seed))
        sds = SDS(uniform_sigma())(MIXTURE.denoise, x, 0.0, seeded(seed))
        torch.testing.assert_close(vsd.value, sds.value)
        torch.testing.assert_close(vsd.weight, torch.as_tensor(sds.weight))
        assert vsd.calls == 2
        assert vsd.level == sds.level


def test_vsd_stands_still_where_the_particles_are_the_density():
    """D_particles = D leaves x in place; two particles repel each other."""
    x = draw(0, 9, 2)
    target = VSD(lambda x, denoise: MIXTURE.denoise)(MIXTURE.denoise, x, 0.0, seeded())
    torch.testing.assert_close(target.value, x)
    pair = torch.tensor([[-0.1, 0.0], [0.1, 0.0]], dtype=torch.float64)
    flat = VSD(ideal_particles, annealed(constant(0.5)))
    shifts = [flat(lambda z, sigma: pair.mean(0).expand_as(z), pair, 0.0, seeded(i)).value - pair for i in range(500)]
    apart = (torch.stack(shifts).mean(0)[:, 0] * torch.tensor([-1.0, 1.0])).sum()
    sds = SDS(annealed(constant(0.5)), unit_weight)
    pulled = sds(lambda z, sigma: pair.mean(0).expand_as(z), pair, 0.0, seeded()).value - pair
    assert apart > (pulled[:, 0] * torch.tensor([-1.0, 1.0])).sum()


# A second implementation of SDI and ISM, in the variance-preserving form of their papers: z_t, ᾱ_t and ε.


def alpha_bar(t: float) -> float:
    """ᾱ of the scaled-linear schedule at time t in [0, 1], log σ linear between the 1000 steps."""
    beta = [(math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999) ** 2 for i in range(1000)]
    place = min(max(t, 0.0), 1.0) * 999
    below = min(int(place), 998)
    logs, product = [], 1.0
    for i in range(below + 2):
        product *= 1 - beta[i]
        logs.append(math.log((1 - product) / product) / 2)
    sigma = math.exp(logs[below] + (place - below) * (logs[below + 1] - logs[below]))
    return 1 / (1 + sigma**2)


def epsilon(denoise, z: Tensor, a: float) -> Tensor:
    """ε̂(z_t, t) of the network that a VE denoiser stands for: z_t = √ᾱ x̂0 + √(1 − ᾱ) ε̂."""
    clean = denoise(z / math.sqrt(a), math.sqrt((1 - a) / a))
    return (z - math.sqrt(a) * clean) / math.sqrt(1 - a)


def ddim(z: Tensor, ε: Tensor, a: float, b: float) -> Tensor:
    """DDIM from ᾱ = a to ᾱ = b, in either direction."""
    clean = (z - math.sqrt(1 - a) * ε) / math.sqrt(a)
    return math.sqrt(b) * clean + math.sqrt(1 - b) * ε


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_sdi_in_variance_preserving_form(seed, progress):
    forward, negative = (guided(MIXTURE.denoise, OTHER.denoise, s) for s in (7.5, -7.5))
    target = SDI(inversion=negative)(forward, X, progress, seeded(seed))
    g = seeded(seed)
    t = min(0.98 + (0.25 - 0.98) * progress + torch.rand((), generator=g).item() / 10, 1.0)
    times = [i / 10 for i in range(10) if i / 10 < t] + [t]
    z = math.sqrt(alpha_bar(0)) * X
    for lo, hi in itertools.pairwise(times):
        a, b = alpha_bar(lo), alpha_bar(hi)
        z = ddim(z, epsilon(negative, z, a), a, b)
        share = 0.3 * math.sqrt((1 - a) / (1 - b) * (1 - b / a))
        z = z + share * torch.randn(5, 2, dtype=torch.float64, generator=g)
    a = alpha_bar(t)
    clean = (z - math.sqrt(1 - a) * epsilon(forward, z, a)) / math.sqrt(a)
    torch.testing.assert_close(target.value, clean, rtol=1e-8, atol=1e-8)
    assert target.weight == 1
    assert target.level == pytest.approx(math.sqrt((1 - a) / a))
    assert target.calls == 2 * (len(times) - 1) + 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("progress", "high", "interval"), [(0.0, 0.98, 0.1), (0.15, 0.74, 0.075), (0.3, 0.5, 0.05), (1.0, 0.5, 0.05)]
)
def test_ism_in_variance_preserving_form(seed, progress, high, interval):
    forward, uncond = guided(MIXTURE.denoise, OTHER.denoise, 7.5), OTHER.denoise
    target = ISM(uncond=uncond)(forward, X, progress, seeded(seed))
    g = seeded(seed)
    t = 0.02 + (high - 0.02) * torch.rand((), generator=g).item()
    s = max(t - interval, 0)
    times = [time for time in (0.0, 0.2, 0.4, 0.6, 0.8) if time < s] + [s]
    a = alpha_bar(0)
    z = math.sqrt(a) * X + math.sqrt(1 - a) * torch.randn(X.shape, dtype=X.dtype, generator=g)
    for lo, hi in itertools.pairwise(times):
        z = ddim(z, epsilon(uncond, z, alpha_bar(lo)), alpha_bar(lo), alpha_bar(hi))
    a, b = alpha_bar(s), alpha_bar(t)
    ε_s = epsilon(uncond, z, a)
    ε_t = epsilon(forward, ddim(z, ε_s, a, b), b)
    gradient = math.sqrt((1 - b) / b) * (ε_t - ε_s)
    torch.testing.assert_close(X - target.value, gradient, rtol=1e-8, atol=1e-8)
    assert target.level == pytest.approx(math.sqrt((1 - b) / b))
    assert target.calls == len(times) - 1 + 1 + 2


@given(seed=seeds, λ=levels, η=st.sampled_from([1.0, 1.9]))
@settings(max_examples=60, deadline=None)
def test_mean_shift_ascends_by_at_least_the_bound(seed, λ, η):
    """Invariant 5 of docs/invariants.md: log p_λ(x + ηm) − log p_λ(x) ≥ η (2 − η) |m|²/2λ²."""
    mixture, x = random_mixture(seed), 2 * draw(seed, 20, 2)
    m = MeanShift(constant(λ))(mixture.denoise, x, 0.0, None).value - x
    gain = mixture.log_prob(x + η * m, λ) - mixture.log_prob(x, λ)
    bound = η * (2 - η) * m.square().sum(-1) / (2 * λ**2)
    assert (gain >= bound - 1e-9 * (1 + bound)).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, above(0.3), above(0.2)])
def test_mean_shift_may_ask_with_noise(share: float | Callable[[float], float]):
    """Its input is x + share·λn; with the whole noise its target is that of annealed SDS, in the mean over n."""
    λ, asked = 0.3, []
    expected = share(λ) if callable(share) else share

    def listen(z, sigma):
        asked.append(z)
        return MIXTURE.denoise(z, sigma)

    x = X[:1].expand(20_000, 2)
    target = MeanShift(constant(λ), share)(listen, x, 0.0, seeded())
    n = (asked[0] - x) / λ
    assert target.calls == 1 and target.level == λ and target.weight == 1.0
    assert n.square().mean().sqrt().item() == pytest.approx(expected, rel=0.02)
    if expected == 0:
        assert torch.equal(target.value, MIXTURE.denoise(x, λ))
    if expected == 1:
        annealed_sds = SDS(annealed(constant(λ)), unit_weight)(MIXTURE.denoise, x, 0.0, seeded(1)).value
        error = (target.value.var(0) + annealed_sds.var(0)).sqrt() / 20_000**0.5
        assert ((target.value.mean(0) - annealed_sds.mean(0)).abs() < 4 * error).all()


def test_mean_shift_stands_still_at_every_stationary_point():
    """Invariant 5 of docs/invariants.md, saddles included: found on the gradient of log p_λ by automatic differentiation."""
    mixture, λ = random_mixture(5, components=8, thinnest=0.1), 0.15

    def downhill(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(-mixture.log_prob(x, λ).sum(), x)[0]

    points, kind = stationary_points(downhill, 4.0)
    assert (kind == 0).sum() >= 2
    assert (kind == 1).sum() >= 1
    m = MeanShift(constant(λ))(mixture.denoise, points, 0.0, None).value - points
    assert m.norm(dim=-1).max() < 1e-9


@pytest.mark.parametrize("kernel", ["exact", "exponential"])
def test_msd_is_the_mean_of_its_samples(kernel):
    λ, n = 0.4, 3
    target = MSD(kernel, linear(0.7, 0.1), SIGMAS, n)(MIXTURE.denoise, X, 0.5, seeded())
    stack = X.expand(n, 5, 2)
    *_, y = sample_product(MIXTURE.denoise, stack, λ, SIGMAS, kernel, generator=seeded())
    torch.testing.assert_close(target.value, y.mean(0))
    assert (target.weight, target.level) == (1, pytest.approx(λ))
    assert target.calls == n * (11 + (kernel == "exact"))


def test_msd_estimates_the_mean_shift():
    """Exact kernel: unbiased up to the solver's error, with variance 1/N of the product's."""
    x = X[:1].expand(3000, 2)
    λ, sigmas = 0.5, karras_sigmas(48, 1e-3, 10)
    truth = MIXTURE.denoise(X[:1], λ)[0]
    one, four = (MSD("exact", constant(λ), sigmas, n)(MIXTURE.denoise, x, 0.0, seeded(n)).value for n in (1, 4))
    for y in (one, four):
        assert ((y.mean(0) - truth).abs() < 5 * y.std(0) / math.sqrt(3000) + 0.01 * one.std(0)).all()
    ratio = one.var(0) / four.var(0)
    assert ((ratio > 3.4) & (ratio < 4.6)).all(), ratio


def test_msd_centred_on_the_inversion_of_x():
    msd = MSD("exponential", constant(0.4), SIGMAS, 2, "euler", interval=(0.1, 2.0), inversion=OTHER.denoise)
    target = msd(MIXTURE.denoise, X, 0.0, seeded())
    centre = [c.expand(2, 5, 2) for c in reversed(list(invert(OTHER.denoise, X, SIGMAS, "euler")))]
    *_, y = sample_product(
        MIXTURE.denoise,
        X.expand(2, 5, 2),
        0.4,
        SIGMAS,
        "exponential",
        interval=(0.1, 2.0),
        centre=centre,
        solver="euler",
        generator=seeded(),
    )
    torch.testing.assert_close(target.value, y.mean(0))
    assert target.calls == 2 * 6 + 5  # the inversion stands still on its step from 0


def test_the_interval_may_move_with_the_bandwidth():
    bandwidth = linear(0.8, 0.2)
    moving = MSD("exponential", bandwidth, SIGMAS, 2, interval=lambda λ: (λ / 2, 3 * λ))
    for progress in (0.0, 0.5, 1.0):
        λ = bandwidth(progress)
        fixed = MSD("exponential", bandwidth, SIGMAS, 2, interval=(λ / 2, 3 * λ))
        here, there = (msd(MIXTURE.denoise, X, progress, seeded()).value for msd in (moving, fixed))
        torch.testing.assert_close(here, there, rtol=0, atol=0)


def test_guided_calls_cost_two():
    denoise = guided(MIXTURE.denoise, OTHER.denoise, 4.0)
    cost = {
        "SDS": (SDS(samples=3), 6),
        "VSD": (VSD(ideal_particles), 3),
        "ISM": (ISM(steps=1, low=0.2), 6),
        "MeanShift": (MeanShift(constant(0.3)), 2),
        "MSD": (MSD("exact", constant(0.3), SIGMAS, 2, "euler"), 2 * 2 * 7),
    }
    for name, (method, calls) in cost.items():
        assert method(denoise, X, 0.5, seeded()).calls == calls, name


def test_an_event_may_have_any_shape_and_dtype_follows():
    """A batch of 2 images of shape (1, 3, 3), denoised towards a training set of 4."""
    denoise = IdealDenoiser(torch.randn(4, 1, 3, 3, generator=seeded()))
    x = torch.randn(2, 1, 3, 3, generator=seeded(1))
    methods = [SDS(samples=2), VSD(ideal_particles), SDI(), ISM(), MeanShift(constant(0.3))]
    methods += [MSD(kernel, constant(0.3), SIGMAS, 2) for kernel in ("exact", "exponential", "explicit")]
    for method in methods:
        target = method(denoise, x, 0.5, seeded())
        assert target.value.shape == x.shape, method
        assert target.value.dtype == torch.float32, method
        again = method(denoise, x, 0.5, seeded())
        assert torch.equal(target.value, again.value), method


def test_sampling_without_distillation_is_the_limit_of_a_wide_kernel():
    target = MSD("exact", constant(1e6), SIGMAS)(MIXTURE.denoise, X, 0.0, seeded())
    start = MIXTURE.weights @ MIXTURE.means + 4 * torch.randn(1, 5, 2, dtype=torch.float64, generator=seeded())
    *_, y = sample(product_denoiser(MIXTURE.denoise, X, math.inf), start, SIGMAS)
    torch.testing.assert_close(target.value, y[0], rtol=1e-6, atol=1e-6)


def test_bad_settings_are_refused_when_the_method_is_made():
    for make in (MeanShift, lambda b: MSD("exact", b, SIGMAS)):
        with pytest.raises(ValueError, match=r"bandwidth is .* may never increase"):
            make(lambda progress: 1 + progress)
    with pytest.raises(ValueError, match="kernel is 'Eq15'; it may be one of exact, exponential, explicit"):
        MSD("Eq15", constant(0.3), SIGMAS)
    for second in (math.nan, math.inf, "7.5"):
        for make in (SDI, PFD, ISM):
            with pytest.raises(ValueError, match=r"(inversion|uncond) is .*; it must be a finite guidance scale"):
                make(second)  # type: ignore[arg-type]
    for make in (lambda: SDS(samples=5.0), lambda: SDI(steps=2.5), lambda: PFD(steps=0)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"(samples|steps) is .*; it must be a whole number, at least 1"):
            make()
    with pytest.raises(ValueError, match="solver is 'DDIM'; it may be one of heun, euler"):
        PFD(solver="DDIM")
    table = torch.ones(3)
    for said, make in {
        r"noise is nan; it must be a number": lambda: SDI(noise=math.nan),
        r"noise is -1; it must be a number, from 0": lambda: PFD(noise=-1),
        r"time begins at 14\.6; it is t in": lambda: SDI(time=linear(14.6, 0.03)),
        r"level is tensor.*; it must be a function, such as vp_sigma or prior\.level": lambda: SDI(level=table),  # type: ignore[arg-type]
        r"sigma is 3\.0; it must be a function, such as uniform_time": lambda: SDS(sigma=3.0),  # type: ignore[arg-type]
        r"weight is 2\.0; it must be a function": lambda: VSD(ideal_particles, weight=2.0),  # type: ignore[arg-type]
        r"particles is None; it must be a function": lambda: VSD(None),  # type: ignore[arg-type]
        r"low is 0\.6, high linear.*; they must be times, 0 <= low < high": lambda: ISM(low=0.6),
        r"interval is 0\.05; it must be a function of progress": lambda: ISM(interval=0.05),  # type: ignore[arg-type]
        r"level is 0 at t = 0; ISM starts": lambda: ISM(level=torch.sqrt),
        r"until is 0; it must be progress in": lambda: linear(1, 0.1, until=0),
        r"noise is -0\.5; it must be a number": lambda: MeanShift(constant(0.3), -0.5),
        r"noise is <class .*above'>; it must be a function": lambda: MeanShift(constant(0.3), above),  # type: ignore[arg-type]
        r"level is nan; it must be a number": lambda: above(math.nan),
        r"start is 'a'; it must be a number": lambda: linear("a", 0.1),  # type: ignore[arg-type]
        r"top is nan; it must be above 0": lambda: sigmas_around(top=math.nan),
        r"kernel is 'Eq15'; it may be one of": lambda: MSD("Eq15", constant(0.3), SIGMAS, inversion=1.0),
    }.items():
        with pytest.raises(ValueError, match=said):
            make()


# ---------------------------------------------------------------- settings are values


METHODS = {
    "SDS": lambda: SDS(annealed(linear(1.0, 0.1)), unit_weight, 3),
    "VSD": lambda: VSD(ideal_particles, uniform_sigma(0.1, 2.0)),
    "SDI": lambda: SDI(-7.5, geometric(0.9, 0.1), 4, 0.1),
    "PFD": lambda: PFD(-6.5, steps=4, solver="heun"),
    "ISM": lambda: ISM(0.0, 3),
    "mean shift": lambda: MeanShift(linear(1.0, 0.1)),
    "MSD": lambda: MSD("exact", linear(1.0, 0.1), SIGMAS, 2),
    "MSD, moving grid": lambda: MSD("exact", linear(1.0, 0.1), sigmas_around(8)),
    "a model's own levels": lambda: SDI(level=LevelTable(SIGMAS.flip(0)[1:])),
    "another model's": lambda: SDI(level=LevelTable(2 * SIGMAS.flip(0)[1:])),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_known_by_what_it_says(name):
    method = METHODS[name]()
    assert method == METHODS[name]()
    assert hash(method) == hash(METHODS[name]())
    assert pickle.loads(pickle.dumps(method)) == method
    assert all(method != METHODS[other]() for other in METHODS if other != name)
    said = repr(method)
    assert said.startswith(type(method).__name__ + "(")
    assert " at 0x" not in said, "an address would make two equal runs two"
    for field in dataclasses.fields(method):
        assert f"{field.name}=" in said
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, 1)


def test_what_is_said_is_all():
    """Noise levels in full, and every nested setting: a method that is read back from its repr is the same."""
    names = globals() | {"tensor": torch.tensor, "vp_sigma": vp_sigma}
    for name, make in METHODS.items():
        if "model's" in name:
            continue  # a thousand levels are said by their ends and a digest
        said = repr(make()).replace(
            f"sigmas={SIGMAS.tolist()}", f"sigmas=torch.tensor({SIGMAS.tolist()}, dtype=torch.float64)"
        )
        assert eval(said, names) == make()


# ---------------------------------------------------------------- second denoisers, and what a call costs


class Counting:
    """The mixture, and the rows that it was asked about, by name."""

    def __init__(self):
        self.rows = {"cond": 0, "uncond": 0}

    def part(self, name: str, density):
        def denoise(z: Tensor, sigma: float | Tensor) -> Tensor:
            self.rows[name] += z[..., 0].numel()
            return density.denoise(z, sigma)

        return denoise


ALL = {
    **METHODS,
    "SDS, plain": lambda: SDS(),
    "VSD, plain": lambda: VSD(ideal_particles),
    "SDI, own scale": lambda: SDI(),
    "PFD, own scale": lambda: PFD(),
    "ISM, own scale": lambda: ISM(),
    "MSD, inverted centre": lambda: MSD("exponential", constant(0.4), SIGMAS, 3, "euler", inversion=1.0),
    "MSD, explicit": lambda: MSD("explicit", constant(1.0), SIGMAS, 2),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_calls_are_the_rows_that_reach_the_networks(name, scale):
    seen = Counting()
    denoise = guided(seen.part("cond", MIXTURE), seen.part("uncond", OTHER), scale)
    target = ALL[name]()(denoise, X, 0.4, seeded())
    particles = len(X) if name.startswith("VSD") else 0  # its own denoiser is no network here
    assert target.calls * len(X) == sum(seen.rows.values()) + particles


@pytest.mark.parametrize(
    "method",
    [lambda s: SDI(s), lambda s: PFD(s), lambda s: ISM(s), lambda s: MSD("exponential", constant(0.4), SIGMAS, 2, inversion=s)],
    ids=["SDI", "PFD", "ISM", "MSD"],
)  # fmt: skip
def test_a_number_is_the_batchs_own_denoiser_at_that_scale(method):
    """Whatever denoiser the batch brings: `guided` of it at the other scale, given as a denoiser, is the same."""
    for cond, uncond in ((MIXTURE, OTHER), (OTHER, MIXTURE)):
        own = guided(cond.denoise, uncond.denoise, 3.0)
        for scale in (-7.5, 0.0, 1.0):
            by_number, by_denoiser = method(scale), method(guided(cond.denoise, uncond.denoise, scale))
            ours, theirs = (m(own, X, 0.5, seeded()) for m in (by_number, by_denoiser))
            torch.testing.assert_close(ours.value, theirs.value, rtol=0, atol=0)
            assert ours.calls == theirs.calls
        outside = counted(own)
        target = method(-7.5)(outside, X, 0.5, seeded())
        assert torch.equal(target.value, method(-7.5)(own, X, 0.5, seeded()).value)
        samples = 2 if isinstance(method(-7.5), MSD) else 1
        inverted = 10 if samples == 2 else 0  # its samples go in one call, the inversion of x in another
        assert target.calls == samples * (outside.calls - inverted) + inverted, "a counter around it sees both scales"
    with pytest.raises(ValueError, match=r"has no guidance scale; give a denoiser instead of -7\.5"):
        method(-7.5)(MIXTURE.denoise, X, 0.5, seeded())


def test_methods_follow_the_models_own_levels():
    """On a schedule in which t is log σ: where SDI, PFD and ISM ask, and where SDS draws."""

    def levels(t: Tensor) -> Tensor:
        return 0.01 * 1000 ** torch.as_tensor(t, dtype=torch.float64)

    asked: list[float] = []

    def denoise(z: Tensor, sigma: float | Tensor) -> Tensor:
        asked.append(float(torch.as_tensor(sigma).max()))
        return MIXTURE.denoise(z, sigma)

    for method in (SDI(level=levels), PFD(level=levels), ISM(level=levels), SDS(uniform_time(level=levels))):
        asked.clear()
        target = method(denoise, X, 0.0, seeded())
        assert 0.00999 <= min(asked) <= max(asked) <= 10.001
        assert max(asked) == pytest.approx(target.level, rel=0.3) or isinstance(method, SDS)
    t = 0.02 + 0.96 * torch.rand(1, 5, dtype=torch.float64, generator=seeded())
    assert SDS(uniform_time(level=levels))(MIXTURE.denoise, X, 0.0, seeded()).level == pytest.approx(
        float(levels(t).mean())
    )


def test_a_device_without_float64_is_served(monkeypatch):
    """Where no float64 may be made, levels and data are float32, and the answers the same to its digits."""
    x = X.float()
    denoise = IdealDenoiser(draw(3, 50, 2).float())
    wide = MeanShift(constant(0.4))(denoise, x, 0.0, seeded()).value
    monkeypatch.setattr("msd_teach.denoisers.widest", lambda device: torch.float32)
    monkeypatch.setattr("msd_teach.targets.widest", lambda device: torch.float32)
    narrow = IdealDenoiser(draw(3, 50, 2).float())
    torch.testing.assert_close(MeanShift(constant(0.4))(narrow, x, 0.0, seeded()).value, wide, rtol=1e-4, atol=1e-5)
    seen = []
    SDS(samples=2)(lambda z, sigma: (seen.append(sigma.dtype), z)[1], x, 0.0, seeded())  # type: ignore[union-attr]
    assert seen == [torch.float32]


# ---------------------------------------------------------------- probability-flow distillation


def test_pfd_up_and_down_one_flow_is_where_it_was_at_the_solvers_order():
    """Without fresh noise and with one denoiser the target is x: every point is a fixed point of PFD.

    Heun's errors of second order on the way up and down cancel, so that the round trip is of third order.
    """
    for solver, order in (("euler", 1), ("heun", 3)):
        pfds = [PFD(time=constant(0.6), steps=steps, noise=0.0, solver=solver) for steps in (160, 320, 640)]
        errors = [(pfd(SMOOTH.denoise, X, 0.0, seeded()).value - X).norm().item() for pfd in pfds]
        orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
        assert all(abs(found - order) < 0.35 for found in orders), (errors, orders)


def test_pfd_of_gaussians_is_linear_and_known():
    """Guided by s between N(0, a²) and N(0, b²), dz/dσ = z [s σ/(σ² + a²) + (1 − s) σ/(σ² + b²)] is solved by
    z ∝ (σ² + a²)^{s/2} (σ² + b²)^{(1 − s)/2}: up with one s, down with another.
    """
    a, b = 0.5, 2.0
    narrow, wide = (lambda z, sigma, v=v: z * v**2 / (v**2 + torch.as_tensor(sigma) ** 2) for v in (a, b))
    up, down, t = -2.0, 3.0, 0.7
    σ_0, σ_t = (float(vp_sigma(torch.tensor(v, dtype=torch.float64))) for v in (0.0, 1.0))

    def grown(s: float, low: float, high: float) -> float:
        return ((high**2 + a**2) / (low**2 + a**2)) ** (s / 2) * ((high**2 + b**2) / (low**2 + b**2)) ** ((1 - s) / 2)

    pfd = PFD(up, time=constant(1.0), steps=400, noise=0.0, solver="heun")
    found = pfd(guided(narrow, wide, down), X, t, seeded())
    assert found.level == pytest.approx(σ_t)
    torch.testing.assert_close(found.value, X * grown(up, σ_0, σ_t) / grown(down, σ_0, σ_t), rtol=5e-4, atol=0)


# ---------------------------------------------------------------- a grid that follows the bandwidth


@pytest.mark.parametrize("share", [0.03, 0.3, 0.9])
@pytest.mark.parametrize("λ", [10.0, 1.0, 0.03, 0.001])
def test_the_ready_grid_keeps_the_spread_of_the_draws(λ, share):
    """For N(0, s²) the flow is linear: the variance of a draw is exact, not estimated, from two starts one apart."""
    s2 = share * λ**2 / (1 - share)  # so that ∂D/∂x = share at λ

    def denoise(z: Tensor, sigma: float | Tensor) -> Tensor:
        return z * s2 / (s2 + torch.as_tensor(sigma, dtype=torch.float64) ** 2)

    sigmas, x = sigmas_around()(λ), torch.zeros(1, 1, dtype=torch.float64)
    assert λ / 30 == pytest.approx(float(sigmas[-2]))
    *_, y = sample_product(denoise, x, λ, sigmas, start=sigmas[:1, None])
    assert float(y.square()) == pytest.approx(share * λ**2, rel=0.03)
    *_, short = sample_product(denoise, x, λ, karras_sigmas(24, 0.03, 14.6), start=torch.full_like(x, 14.6))
    if λ < 0.01:
        assert float(short.square()) != pytest.approx(share * λ**2, rel=0.3), "a grid that stays where it is does not"


def test_msd_asks_its_grid_at_every_bandwidth():
    bandwidth = linear(0.8, 0.2)
    for progress in (0.0, 0.5, 1.0):
        fixed = MSD("exact", bandwidth, sigmas_around(6)(bandwidth(progress)), 2)
        here, there = (
            m(MIXTURE.denoise, X, progress, seeded()).value
            for m in (MSD("exact", bandwidth, sigmas_around(6), 2), fixed)
        )
        assert torch.equal(here, there)
    with pytest.raises(ValueError, match="sigma_min, sigma_max are"):
        MSD("exact", bandwidth, sigmas_around(6, top=0.01))


def test_a_warm_start_replaces_the_draw():
    start = draw(3, 5, 2)
    for kernel in ("exact", "exponential", "explicit"):
        *_, y = sample_product(MIXTURE.denoise, X, 0.8, SIGMAS, kernel, start=start)
        *_, again = sample_product(MIXTURE.denoise, X, 0.8, SIGMAS, kernel, start=start, generator=seeded(5))
        assert torch.equal(y, again)
        first = next(sample_product(MIXTURE.denoise, X, 0.8, SIGMAS, kernel, start=start))
        assert torch.equal(first, start)
    *_, y = sample_product(MIXTURE.denoise, X, 0.8, SIGMAS, start=start)
    *_, by_hand = sample(product_denoiser(MIXTURE.denoise, X, 0.8), start, SIGMAS)
    assert torch.equal(y, by_hand)
    with pytest.raises(ValueError, match=r"start has shape \(3, 2\); it must be x's, \(5, 2\)"):
        sample_product(MIXTURE.denoise, X, 0.8, SIGMAS, start=start[:3])


# ---------------------------------------------------------------- variational score distillation with a network


class LearnedParticles:
    """What stands for a LoRA: centres that learn to denoise the current x, by ‖D(x + σn; σ) − x‖²/σ²."""

    def __init__(self, count: int):
        self.centres = draw(9, count, 2).requires_grad_()
        self.optimizer = torch.optim.Adam([self.centres], 0.02)

    def __call__(self, x: Tensor, denoise) -> "LearnedParticles":
        return self

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        σ = torch.as_tensor(sigma, dtype=z.dtype).reshape(-1, 1)
        squares = (z[:, None] - self.centres).square().sum(-1)
        return (-squares / (2 * σ**2)).softmax(-1) @ self.centres

    def after_step(self, denoise, x: Tensor, generator: torch.Generator | None) -> int:
        with torch.enable_grad():
            σ = 0.05 + 1.5 * torch.rand(len(x), 1, generator=generator, dtype=x.dtype)
            z = x + σ * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            loss = ((self.denoise(z, σ) - x).square().sum(1) / σ[:, 0] ** 2).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return 1

    def state_dict(self) -> dict:
        return {"centres": self.centres.detach().clone(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.centres.data.copy_(state["centres"])
        self.optimizer.load_state_dict(state["optimizer"])


def test_vsd_with_a_network_that_learns_tends_to_vsd_with_the_exact_particles():
    x = torch.tensor([[1.0, 0.2], [-0.8, 0.5], [0.1, -1.1]], dtype=torch.float64)
    network, law, g = LearnedParticles(3), uniform_sigma(0.1, 1.0), seeded(1)
    learning = VSD(lambda x, denoise: network.denoise, law)
    exact = VSD(ideal_particles, law)
    vsd = VSD(network, law)  # type: ignore[arg-type]  # for what it forwards: learning and its state

    def apart() -> float:
        pairs = ([m(MIXTURE.denoise, x, 0.0, seeded(i)).value for m in (learning, exact)] for i in range(50))
        return torch.stack([(ours - theirs).norm() for ours, theirs in pairs]).mean().item()

    before = apart()
    for step in range(1500):
        if step == 1000:
            network.optimizer.param_groups[0]["lr"] = 0.002
        assert vsd.after_step(MIXTURE.denoise, x, g) == 1
    assert apart() < 0.1 * before
    torch.testing.assert_close(
        network.centres.detach()[torch.cdist(x, network.centres.detach()).argmin(1)], x, rtol=0, atol=0.1
    )
    kept = copy.deepcopy(vsd.state_dict())
    vsd.after_step(MIXTURE.denoise, x, g)
    moved = network.centres.detach().clone()
    vsd.load_state_dict(kept)
    assert torch.equal(network.centres.detach(), kept["centres"])
    assert not torch.equal(moved, kept["centres"])
    assert exact.state_dict() == {} and exact.after_step(MIXTURE.denoise, x, g) == 0
