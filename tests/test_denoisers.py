import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from reference import levels, mean_shift_sum, random_mixture, seeds

from msd_teach import IdealDenoiser, counted, fractal, guided, product_denoiser
from msd_teach.denoisers import cost


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=seeds, sigma=levels)
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("event", [(2,), (7,), (3, 2)])
def test_attention_is_the_mean_shift_sum(event, seed, sigma):
    data, z = 3 + draw(seed, 40, *event), 3 + draw(seed + 1, 11, *event)
    torch.testing.assert_close(IdealDenoiser(data)(z, sigma), mean_shift_sum(data, z, sigma), rtol=1e-8, atol=1e-8)


def test_sigma_may_differ_from_item_to_item():
    data, z, sigma = draw(0, 40, 2), draw(1, 3, 4, 2), 0.1 + draw(2, 3, 4).abs()
    denoise = IdealDenoiser(data)
    want = mean_shift_sum(data, z.reshape(12, 2), sigma.flatten()).reshape(3, 4, 2)
    torch.testing.assert_close(denoise(z, sigma), want)
    torch.testing.assert_close(denoise(z, sigma[..., None]), want)
    torch.testing.assert_close(denoise(z, sigma[:, 0])[0], denoise(z[0], float(sigma[0, 0])))


@pytest.mark.parametrize("sigma", [0.002, 0.005, 0.02, 0.2, 2.0])
def test_float32_follows_float64(sigma):
    """Invariant 6 of docs/invariants.md, on the fractal moved away from the origin, where centring matters."""
    g = torch.Generator().manual_seed(0)
    data = (fractal().sample(10_000, generator=g) + 10).float()
    z = data[:4096] + sigma * torch.randn(4096, 2, generator=g)
    error = (IdealDenoiser(data)(z, sigma) - IdealDenoiser(data.double())(z.double(), sigma)).abs().max() / sigma
    assert error < 2e-2


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_finite_far_from_the_data(kind):
    data = fractal().sample(500, generator=torch.Generator().manual_seed(0)).to(kind)
    z = torch.tensor([[1e6, 0], [-1e6, 1e6], [0, 1e12], [0, 0]], dtype=kind)
    for sigma in (0.0, 1e-9, 0.002, 80.0):
        mean = IdealDenoiser(data)(z, sigma)
        assert mean.isfinite().all()
        assert mean.dtype == kind
        assert (mean.norm(dim=-1) <= data.norm(dim=-1).max() * 1.001).all()


def test_without_noise_it_is_the_nearest_datum():
    data, z = draw(0, 300, 2), draw(1, 50, 2)
    nearest = data[torch.cdist(z, data).argmin(-1)]
    for sigma in (0.0, 1e-6):
        torch.testing.assert_close(IdealDenoiser(data)(z, sigma), nearest, rtol=1e-12, atol=1e-12)


def test_one_datum_and_duplicates():
    one = draw(0, 1, 2)
    torch.testing.assert_close(IdealDenoiser(one)(draw(1, 5, 2), 0.1), one.expand(5, 2))
    data, z = draw(2, 20, 2), draw(3, 5, 2)
    torch.testing.assert_close(IdealDenoiser(data)(z, 0.3), IdealDenoiser(data.repeat(2, 1))(z, 0.3))


MEMORY = """
import sys, torch
from msd_teach import IdealDenoiser
n = int(sys.argv[1])
x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
IdealDenoiser(x)(x[:4], 0.1)
def peak():  # ru_maxrss would start at the peak of the process that forked this one
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
IdealDenoiser(x)(x, 0.1)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_grows_with_the_sum_not_the_product():
    """14 000 × 14 000 float32 logits would take 748 MiB."""
    grown = int(
        subprocess.run([sys.executable, "-c", MEMORY, "14000"], capture_output=True, text=True, check=True).stdout
    )
    assert grown < 100 * 1024  # KiB


def test_guidance_extrapolates_and_skips_what_it_does_not_need():
    c, u = (counted(random_mixture(seed).denoise) for seed in (0, 1))
    z = draw(2, 6, 2)
    got = guided(c, u, 4.0)(z, 0.5)
    torch.testing.assert_close(got, 4 * c.denoise(z, 0.5) - 3 * u.denoise(z, 0.5))
    assert (c.calls, u.calls) == (1, 1)
    guided(c, u, 1.0)(z, 0.5)
    assert (c.calls, u.calls) == (2, 1)
    guided(c, u, 0.0)(z, 0.5)
    assert (c.calls, u.calls) == (2, 2)


def test_guidance_in_a_limited_interval_and_for_each_item():
    c, u = random_mixture(0).denoise, random_mixture(1).denoise
    z = draw(2, 6, 2)
    limited = guided(c, u, lambda sigma: 7.5 if 0.1 < sigma < 1 else 1.0)
    torch.testing.assert_close(limited(z, 2.0), c(z, 2.0))
    torch.testing.assert_close(limited(z, 0.5), guided(c, u, 7.5)(z, 0.5))
    scales = torch.tensor([0, 1, 2, 3, 4, 5.0])
    for i, row in enumerate(guided(c, u, scales)(z, 0.5)):
        torch.testing.assert_close(row, guided(c, u, float(scales[i]))(z[i], 0.5))


def test_cost_counts_evaluations_for_each_item():
    z = draw(0, 6, 2)
    plain = random_mixture(0).denoise
    limited = guided(plain, plain, lambda sigma: 3.0 if float(sigma) < 1 else 1.0)
    denoise = counted(limited)
    denoise(z, 0.5)
    denoise(z, 2.0)
    assert denoise.calls == 3
    assert cost(plain, z, 0.5) == 1
    assert cost(guided(limited, plain, 2.0), z, 0.5) == 3
    # seen through a kernel the noise is smaller, and so within the interval
    assert cost(product_denoiser(limited, z, 0.5), z, 2.0) == 2


def test_bad_input_is_refused_by_name():
    data = draw(0, 5, 2)
    with pytest.raises(ValueError, match=r"data has shape \(0, 2\); it must be \(M, \*event\) with M >= 1"):
        IdealDenoiser(data[:0])
    with pytest.raises(ValueError, match=r"data has shape \(2,\)"):
        IdealDenoiser(data[0])
    with pytest.raises(ValueError, match="data contains NaN"):
        IdealDenoiser(data * math.nan)
    denoise = IdealDenoiser(data)
    with pytest.raises(ValueError, match=r"z has shape \(5, 3\); it must end in the data's event shape \(2,\)"):
        denoise(torch.zeros(5, 3), 0.1)
    with pytest.raises(ValueError, match="sigma is -1; it must be >= 0"):
        denoise(data, -1)
    with pytest.raises(ValueError, match=r"sigma has shape \(5, 2\); it may not vary within an event"):
        denoise(data, torch.ones(5, 2))
    with pytest.raises(ValueError, match="scale is nan; it must be a finite number"):
        guided(denoise, denoise, math.nan)
    assert guided(denoise, denoise, np.float32(2))(data, 0.1).isfinite().all()  # type: ignore[arg-type]


def test_the_data_are_read_in_their_own_precision_and_with_gradients_wherever_they_were_first_read():
    """Autocast would round the logits to bfloat16; keys that inference mode made could not be differentiated through."""
    data, z = draw(0, 50, 2).float(), draw(1, 5, 2).float()
    want = IdealDenoiser(data)(z, 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(IdealDenoiser(data)(z, 0.3), want)
    with torch.inference_mode():
        made = IdealDenoiser(data.clone())
    read = IdealDenoiser(data)
    with torch.inference_mode():
        read(z.double(), 0.3)
    for denoise, x in ((made, z.clone().requires_grad_()), (read, z.double().requires_grad_())):
        (gradient,) = torch.autograd.grad(denoise(x, 0.3).sum(), x)
        assert gradient.isfinite().all()


def test_small_and_large_sigma_in_one_call():
    """Only the rows below the float32 limit pay for float64, and each row is what it is alone."""
    g = torch.Generator().manual_seed(0)
    denoise = IdealDenoiser(fractal().sample(2000, generator=g).float())
    z, sigma = torch.randn(40, 2, generator=g), torch.logspace(-3.5, 0.5, 40)
    together = denoise(z, sigma)
    for i in range(0, 40, 3):
        torch.testing.assert_close(together[i], denoise(z[i], float(sigma[i])), rtol=1e-5, atol=1e-5)
    z.requires_grad_()
    denoise(z, sigma).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_posterior_samples_are_data_with_the_weights_of_the_posterior():
    """Their mean is D(z; σ), their covariance σ² ∂D/∂z, each datum as frequent as its weight; a seed repeats them."""
    data, z, sigma, n = 0.5 * draw(0, 20, 2), 0.5 * draw(1, 3, 2), 0.4, 20_000
    denoise = IdealDenoiser(data)
    y = denoise.posterior_sample(z, sigma, n, torch.Generator().manual_seed(2))
    weights = (-torch.cdist(z, data).square() / (2 * sigma**2)).softmax(-1)
    counts = (y[:, :, None] == data).all(-1).sum(0)
    assert (counts.sum(-1) == n).all()
    chi_squared = ((counts - n * weights).square() / (n * weights)).sum(-1)
    assert (chi_squared < 60).all(), "19 degrees of freedom: beyond 60 once in 250 000 times"
    jacobian = torch.autograd.functional.jacobian(lambda x: denoise(x, sigma), z)[range(3), :, range(3)]
    covariance = torch.stack([y[:, i].T.cov() for i in range(3)])
    torch.testing.assert_close(y.mean(0), denoise(z, sigma), atol=0.02, rtol=0)
    torch.testing.assert_close(covariance, sigma**2 * jacobian, atol=0.01, rtol=0)
    assert torch.equal(y, denoise.posterior_sample(z, sigma, n, torch.Generator().manual_seed(2)))
    nearest = data[torch.cdist(z, data).argmin(-1)]
    assert torch.equal(denoise.posterior_sample(z.float(), 0.0, 2), nearest.float().expand(2, 3, 2))


def test_posterior_samples_refuse_what_a_call_refuses():
    denoise = IdealDenoiser(draw(0, 20, 3, 2))
    for said, arguments in {
        r"samples is 0; it must be a whole number": (draw(1, 4, 3, 2), 0.4, 0),
        r"z has shape \(4, 2\); it must end in the data's event shape \(3, 2\)": (draw(1, 4, 2), 0.4, 1),
        r"sigma is -1": (draw(1, 4, 3, 2), -1.0, 1),
        r"z contains NaN": (draw(1, 4, 3, 2) * math.nan, 0.4, 1),
        r"points are of type list": ([[0.0, 1.0]], 0.4, 1),
    }.items():
        with pytest.raises(ValueError, match=said):
            denoise.posterior_sample(*arguments)
