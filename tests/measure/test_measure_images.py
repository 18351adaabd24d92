"""Distances between sets of pictures, with scipy and repeated draws as referees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from msd_teach.measure.images import bootstrap, frechet_distance


def test_frechet_distance_of_gaussians_and_a_second_implementation() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(400, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, generator=generator).double()
    b = torch.randn(300, 5, generator=generator, dtype=torch.float64) + 0.5
    product = torch.cov(a.T) @ torch.cov(b.T)
    root = torch.as_tensor(linalg.sqrtm(product.numpy()).real)
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
        (lambda: frechet_distance(a.numpy(), a), "a is a ndarray; it must be a torch tensor"),
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
