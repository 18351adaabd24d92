"""Distances between sets of pictures and measures of copies, with scipy, convolutions and repeated draws as referees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from msd_teach.measure.images import bootstrap, explained_share, frechet_distance, sharpness, signal_to_noise


def test_frechet_distance_of_gaussians_and_a_second_implementation() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(400, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, generator=generator).double()
    b = torch.randn(300, 5, generator=generator, dtype=torch.float64) + 0.5
    product = torch.cov(a.T) @ torch.cov(b.T)
    root = torch.as_tensor(np.real(linalg.sqrtm(product.numpy())))
    expected = (a.mean(0) - b.mean(0)).square().sum() + (torch.cov(a.T) + torch.cov(b.T) - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + 2.0) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="b has 5 features of 5 dimensions"):
        frechet_distance(a, b[:5])


def test_the_bootstrap_interval_holds_the_distance_and_is_as_wide_as_its_spread() -> None:
    """Plain quantiles would lie above it: drawing again adds noise, and noise adds distance."""
    generator = torch.Generator().manual_seed(0)

    def pair() -> tuple[Tensor, Tensor]:
        return torch.randn(300, 20, generator=generator), torch.randn(300, 20, generator=generator) + 0.5

    distances = torch.tensor([frechet_distance(*pair()) for _ in range(100)])
    a, b = pair()
    low, high = bootstrap(frechet_distance, a, b)
    assert low < frechet_distance(a, b) < high
    assert (high - low) / (4 * distances.std().item()) == pytest.approx(1.0, abs=0.3)


def test_bad_features_are_refused() -> None:
    a = torch.randn(9, 2)
    for call, message in (
        (lambda: frechet_distance(a.numpy(), a), "a is a ndarray; it must be a torch tensor"),  # pyright: ignore
        (lambda: frechet_distance(a, a[:, 0]), r"b has shape \(9,\)"),
        (lambda: frechet_distance(a, torch.randn(9, 3)), r"b has shape \(9, 3\).* must be \(n, 2\)"),
        (lambda: frechet_distance(a, a / 0), "b contains -?inf"),
        (lambda: frechet_distance(a, a.to(torch.complex64)), "b has shape .* torch.complex64; .* of floats"),
        (lambda: bootstrap(frechet_distance, a, a[:0]), r"b has shape \(0, 2\)"),
        (lambda: bootstrap(frechet_distance, a, a, repeats=2.0), "repeats is 2.0"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert np.isfinite(frechet_distance(a, a.half()))


def waves(seed: int) -> Tensor:
    """Pictures of noise, the rougher the later."""
    noise = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.arange(1, 41)[:, None, None, None] / 40 * noise


def test_signal_to_noise_of_a_known_error() -> None:
    x, mask = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)
    mask[:, :4] = 1
    y = x.clone()
    y[:, :, :4] = 0.2
    assert signal_to_noise(x, y, mask) == pytest.approx(10 * math.log10(4 / 0.04))
    assert signal_to_noise(x, y) == pytest.approx(10 * math.log10(4 / 0.02))
    assert signal_to_noise(x, x) == math.inf


def test_sharpness_and_explained_share_of_known_copies() -> None:
    x = waves(0)
    assert sharpness(x, x) == explained_share(x, x) == (1.0, 0.0)
    half = 0.5 * x + torch.linspace(0, 1, 16)  # a ramp has no Laplacian
    assert sharpness(x, half) == pytest.approx((0.25, 0.0), abs=1e-9)
    assert explained_share(x, half) == pytest.approx((0.75, 0.0), abs=1e-9)
    assert sharpness(x, -x) == pytest.approx((1.0, 0.0))  # as sharp, and all wrong
    assert explained_share(x, -x) == pytest.approx((-3.0, 0.0))
    blank = torch.zeros_like(x)
    assert sharpness(x, blank) == explained_share(x, blank) == (0.0, 0.0)
    value, error = sharpness(x[:1], half[:1])
    assert value == pytest.approx(0.25) and math.isnan(error)


@pytest.mark.parametrize("masked", [False, True])
def test_sharpness_by_a_convolution(masked: bool) -> None:
    x, y = waves(0), waves(1)
    mask = torch.rand(40, 16, 16, generator=torch.Generator().manual_seed(2)) if masked else None
    weight = torch.ones(40, 16, 16) if mask is None else mask
    kernel = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]], dtype=torch.float64)

    def detail(x: Tensor) -> Tensor:
        found = torch.stack([torch.nn.functional.conv2d(c[:, None], kernel)[:, 0] for c in x.unbind(1)], 1)
        return (weight[:, None, 1:-1, 1:-1] * found**2).sum()

    assert sharpness(x, y, mask)[0] == pytest.approx((detail(y) / detail(x)).item(), rel=1e-9)
    assert explained_share(x, y, mask)[0] == pytest.approx(1 - (detail(x - y) / detail(x)).item(), rel=1e-9)


def test_a_mask_hides_what_is_wrong_outside() -> None:
    x = waves(0)
    y = x.clone()
    y[:, :, 8:] = 0
    mask = torch.zeros(40, 16, 16)
    mask[:, :7] = 1  # row 7 has a neighbour that is wrong
    assert sharpness(x, y, mask) == explained_share(x, y, mask) == (1.0, 0.0)
    assert signal_to_noise(x, y, mask) == math.inf
    assert sharpness(x, y)[0] < 0.7 and explained_share(x, y)[0] < 0.7


def test_the_error_of_sharpness_is_its_spread_over_sets_of_pictures() -> None:
    found = [sharpness(waves(2 * i), waves(2 * i + 1)) for i in range(200)]
    values, errors = torch.tensor(found).T
    assert values.mean() == pytest.approx(1.0, abs=0.02)
    assert errors.mean() / values.std() == pytest.approx(1.0, abs=0.2)


def test_bad_copies_are_refused() -> None:
    x, mask = waves(0), torch.ones(40, 16, 16)
    for call, message in (
        (lambda: sharpness(x[0], x[0]), r"x has shape \(3, 16, 16\).* must be \(N, C, H, W\)"),
        (lambda: sharpness(x[..., :2], x[..., :2]), "x has shape .* H, W >= 3"),
        (lambda: explained_share(x, x[:9]), r"y has shape \(9, 3, 16, 16\).* \(40, 3, 16, 16\), as x"),
        (lambda: signal_to_noise(x, x / 0), "y contains -?inf"),
        (lambda: signal_to_noise(x, x.numpy()), "y is a ndarray"),  # pyright: ignore[reportArgumentType]
        (lambda: sharpness(x, x, mask[:, None]), r"mask has shape \(40, 1, 16, 16\).* \(40, 16, 16\)"),
        (lambda: signal_to_noise(x, x, 0 * mask), "mask is from 0 to 0"),
        (lambda: explained_share(x, x, mask - 1.5), "mask is from -0.5 to -0.5"),
        (lambda: sharpness(0 * x, x), "x has no detail there"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
