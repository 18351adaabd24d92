"""The parametrisations against closed forms: perfect networks of a Gaussian, and round trips of time and level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from msd_teach.latent.preconditioning import Preconditioning, RectifiedFlow, VPEpsilon, VPVelocity
from msd_teach.sampling import vp_sigma

LEVELS = vp_sigma(torch.linspace(0, 1, 1000, dtype=torch.float64))
ALL = {"epsilon": VPEpsilon(LEVELS), "v": VPVelocity(LEVELS), "flow": RectifiedFlow()}


def random_levels(n: int = 200) -> Tensor:
    """Within the trained range, on training steps and between."""
    u = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([LEVELS[::111], (u * (LEVELS[-1] / LEVELS[0]).log()).exp() * LEVELS[0]])


def perfect(name: str, spread: float, z_t: Tensor, t: Tensor) -> Tensor:
    """What a perfect network for y ~ N(0, s²) answers, from z_t = a y + b n alone: E[ε | z_t], or E[v | z_t]."""
    if name == "flow":
        a, b = 1 - t, t
    else:
        below = t.floor().long().clamp(max=len(LEVELS) - 2)
        σ = torch.lerp(LEVELS[below].log(), LEVELS[below + 1].log(), t - below).exp()
        a, b = 1 / (1 + σ**2).sqrt(), σ / (1 + σ**2).sqrt()
    total = a**2 * spread**2 + b**2
    y, n = a * spread**2 / total * z_t, b / total * z_t
    return {"epsilon": n, "v": a * n - b * y, "flow": n - y}[name]


def denoised(name: str, spread: float, z: Tensor, σ: Tensor) -> Tensor:
    c: Preconditioning = ALL[name]
    return c.c_skip(σ) * z + c.c_out(σ) * perfect(name, spread, c.c_in(σ) * z, c.t(σ))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("spread", [0.7, 1.0, 1.6])
def test_a_perfect_network_gives_the_exact_denoiser(name: str, spread: float):
    σ = random_levels()
    z = σ * torch.randn(len(σ), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(denoised(name, spread, z, σ), spread**2 / (spread**2 + σ**2) * z, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_time_and_level_are_inverse(name: str):
    c, σ = ALL[name], random_levels()
    torch.testing.assert_close(c.sigma(c.t(σ)), σ, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_input_has_unit_variance_where_data_have(name: str):
    """Variance-preserving: c_in² (1 + σ²) = 1. Rectified flow: z_t = (1 − t) y + t n, so (1 − t)² + t²."""
    c, σ = ALL[name], random_levels()
    t = σ / (1 + σ)
    want = (1 - t) ** 2 + t**2 if name == "flow" else torch.ones_like(σ)
    torch.testing.assert_close(c.c_in(σ) ** 2 * (1 + σ**2), want, rtol=1e-12, atol=0)


def test_rectified_flow_by_its_definition():
    """z_t = (1 − t) y + t n and v = n − y, with any y and n."""
    c = RectifiedFlow()
    y, n = torch.randn(2, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.rand(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    σ = t / (1 - t)
    torch.testing.assert_close(c.t(σ), t, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(c.c_in(σ) * (y + σ * n), (1 - t) * y + t * n, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(c.c_skip(σ) * (y + σ * n) + c.c_out(σ) * (n - y), y, rtol=1e-9, atol=1e-9)


def test_training_steps_are_found_again():
    c = ALL["epsilon"]
    torch.testing.assert_close(c.t(LEVELS), torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-9)
    assert c.t((LEVELS[499] * LEVELS[500]).sqrt()).item() == pytest.approx(499.5)
    ends = c.t(torch.tensor([0.0, LEVELS[0] / 2, LEVELS[-1] * 2, 1e9], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0, 0, 999, 999])
    assert c.sigma(torch.tensor([-1.0, 1e4], dtype=torch.float64)).tolist() == pytest.approx(LEVELS[[0, -1]].tolist())


@pytest.mark.parametrize("name", ["epsilon", "v"])
@pytest.mark.parametrize("spread", [1.0, 0.8, 1.3])
def test_outside_the_trained_range(name: str, spread: float):
    """At the ends it is continuous; D → z below; above, D stays bounded, and is exact for data of unit variance."""
    n, (low, high) = torch.randn(64, generator=torch.Generator().manual_seed(0)).double(), LEVELS[[0, -1]]
    for end, beyond in ((low, low * (1 - 1e-9)), (high, high * (1 + 1e-9))):
        near, at = denoised(name, spread, beyond * n, beyond), denoised(name, spread, end * n, end)
        torch.testing.assert_close(near, at, rtol=1e-6, atol=1e-8)
    for σ in torch.tensor([0.0, 1e-6, 1e-3, 0.02], dtype=torch.float64):
        z = (spread**2 + σ**2) ** 0.5 * n
        error = denoised(name, spread, z, σ) - spread**2 / (spread**2 + σ**2) * z
        assert error.abs().max() <= 2 * σ * low
    held = abs(spread**2 - 1) * high / (spread**2 + high**2)
    for σ in torch.tensor([20.0, 80.0, 1e3, 1e6], dtype=torch.float64):
        z = (spread**2 + σ**2) ** 0.5 * n
        error = denoised(name, spread, z, σ) - spread**2 / (spread**2 + σ**2) * z
        assert error.abs().max() <= (held + 1e-9 * σ / 1e3) * n.abs().max() * 1.01


def test_epsilon_and_v_agree_outside_the_range():
    """Two networks that say the same within the range say the same beyond it."""
    for σ in torch.tensor([1e-3, 0.01, 30.0, 1e3], dtype=torch.float64):
        z = σ * torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
        torch.testing.assert_close(
            denoised("epsilon", 0.8, z, σ), denoised("v", 0.8, z, σ), rtol=1e-8, atol=1e-11 * (1 + float(σ))
        )
