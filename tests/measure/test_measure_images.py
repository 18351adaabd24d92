"""Figures of merit of pictures, with scipy, torchmetrics, loops, convolutions and repeated draws as referees."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn

from msd_teach.measure import images
from msd_teach.measure.images import (
    bootstrap,
    clip_score,
    explained_share,
    frechet_distance,
    kernel_distance,
    r_precision,
    saturation,
    sharpness,
    signal_to_noise,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_distances_are_those_of_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    monkeypatch.setattr(images, "BLOCK", 100)  # kernel values in several parts
    a, b = normal(30, 4), 1.5 * normal(30, 4, seed=1) + 0.3
    itself = nn.Identity()  # features of what is features already
    itself.num_features = 4  # type: ignore[assignment]
    for metric, distance in (
        (fid.FrechetInceptionDistance(itself), frechet_distance),
        (kid.KernelInceptionDistance(itself, subsets=1, subset_size=30), kernel_distance),
    ):
        metric.update(a, real=True)
        metric.update(b, real=False)
        value = metric.compute()
        expected = value[0] if isinstance(value, tuple) else value
        assert distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_kernel_distance_by_pairs_and_by_moments() -> None:
    a, b = normal(7, 3), normal(4, 3, seed=1) + 0.5

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 3 + 1) ** 3

    def within(x: Tensor) -> float:
        return float(np.mean([kernel(p, q) for i, p in enumerate(x) for j, q in enumerate(x) if i != j]))

    between = float(np.mean([kernel(p, q) for p in a for q in b]))
    assert kernel_distance(a, b) == pytest.approx(within(a) + within(b) - 2 * between, rel=1e-9)

    # its mean over sets drawn from a and b is the distance of their raw moments, by (1 + t)³ = 1 + 3t + 3t² + t³
    def moments(x: Tensor) -> list[Tensor]:
        n = len(x)
        return [x.mean(0), torch.einsum("ni,nj->ij", x, x) / n, torch.einsum("ni,nj,nk->ijk", x, x, x) / n]

    pairs = zip((3 / 3, 3 / 9, 1 / 27), moments(a), moments(b), strict=True)
    expected = sum(float(c * (p - q).square().sum()) for c, p, q in pairs)
    generator = torch.Generator().manual_seed(0)
    drawn = [[x[torch.randint(len(x), (n,), generator=generator)] for x, n in ((a, 5), (b, 6))] for _ in range(2000)]
    values = torch.tensor([kernel_distance(*pair) for pair in drawn])
    assert abs(values.mean() - expected) < 4 * values.std() / 2000**0.5 < 0.3 * expected


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_the_bootstrap_interval_holds_the_distance_and_is_as_wide_as_its_spread(distance: Callable) -> None:
    """Plain quantiles would lie above it: drawing again adds noise, and noise adds distance."""
    generator = torch.Generator().manual_seed(0)

    def pair() -> tuple[Tensor, Tensor]:
        return torch.randn(300, 20, generator=generator), torch.randn(300, 20, generator=generator) + 0.5

    distances = torch.tensor([distance(*pair()) for _ in range(100)])
    a, b = pair()
    low, high = bootstrap(distance, a, b)
    assert low < distance(a, b) < high
    assert (high - low) / (4 * distances.std().item()) == pytest.approx(1.0, abs=0.3)


def test_bad_features_and_pictures_are_refused() -> None:
    a = torch.randn(9, 2)
    for call, message in (
        (lambda: frechet_distance(a.numpy(), a), "a is a ndarray; it must be a torch tensor"),  # pyright: ignore
        (lambda: frechet_distance(a, a[:, 0]), r"b has shape \(9,\)"),
        (lambda: frechet_distance(a, torch.randn(9, 3)), r"b has shape \(9, 3\).* must be \(n, 2\)"),
        (lambda: frechet_distance(a, a / 0), "b contains -?inf"),
        (lambda: frechet_distance(a, a.to(torch.complex64)), "b has shape .* torch.complex64; .* of floats"),
        (lambda: kernel_distance(a, a[:1]), r"b has shape \(1, 2\).* must be \(n, 2\) with n >= 2"),
        (lambda: clip_score(a, a[:3]), "captions has 3 rows; it must have 9"),
        (lambda: clip_score(a, 0 * a), "captions has a row of zeros"),
        (lambda: r_precision(a, torch.randn(4, 3), torch.arange(9)), r"captions has shape \(4, 3\).* \(n, 2\)"),
        (lambda: r_precision(a, a[:4], torch.arange(9)), "own is .* must be 9 indices of 4 captions"),
        (lambda: r_precision(a, a, torch.arange(9) - 1), "own is .* must be 9 indices"),
        (lambda: r_precision(a, a, torch.arange(9.0)), "own is .*, torch.long"),
        (lambda: r_precision(a, a, torch.arange(8)), "own is .* must be 9 indices"),
        (lambda: saturation(torch.rand(2, 1, 4, 4)), r"x has shape \(2, 1, 4, 4\).* must be \(N, 3, H, W\)"),
        (lambda: bootstrap(frechet_distance, a, a[:0]), r"b has shape \(0, 2\)"),
        (lambda: bootstrap(frechet_distance, a, a, repeats=2.0), "repeats is 2.0"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert np.isfinite(frechet_distance(a, a.half()))


def test_clip_score_of_known_angles() -> None:
    pictures = torch.tensor([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
    captions = torch.tensor([[2.0, 0], [1, 0], [0, 1], [1, 0]])
    scores = torch.tensor([100.0, 0, 100 / 2**0.5, 0])  # the opposite direction is no worse than a right angle
    assert clip_score(pictures, captions) == pytest.approx((scores.mean().item(), scores.std().item() / 2))
    value, error = clip_score(pictures[:1], captions[:1])
    assert value == pytest.approx(100.0) and math.isnan(error)


def test_r_precision_by_loops_and_with_ties() -> None:
    captions = normal(6, 8)
    own = torch.randint(6, (50,), generator=torch.Generator().manual_seed(1))
    pictures = captions[own] + 1.5 * normal(50, 8, seed=2)
    cosines = torch.nn.functional.cosine_similarity(pictures[:, None], captions, -1).tolist()
    share = sum(max(row) == row[i] for row, i in zip(cosines, own.tolist(), strict=True)) / 50
    assert 0.2 < share < 0.9
    assert r_precision(pictures, captions, own) == pytest.approx((share, (share * (1 - share) / 49) ** 0.5))
    assert r_precision(3 * pictures, captions * torch.arange(1, 7)[:, None], own)[0] == pytest.approx(share)
    assert r_precision(captions, captions, torch.arange(6)) == (1.0, 0.0)
    assert r_precision(captions, -captions, torch.arange(6))[0] < 0.5
    # captions that say the same share the credit: chance where all do, 1/2 where each is there twice
    assert r_precision(pictures, captions[:1].expand(6, 8), own)[0] == pytest.approx(1 / 6)
    assert r_precision(captions, torch.cat([captions, 7 * captions]), torch.arange(6)) == pytest.approx((0.5, 0.0))


def test_the_error_of_r_precision_is_its_spread_over_sets_of_pictures() -> None:
    captions, own = normal(6, 8), torch.arange(6).repeat(10)
    found = [r_precision(captions[own] + 1.5 * normal(60, 8, seed=i), captions, own) for i in range(1, 301)]
    values, errors = torch.tensor(found).T
    assert errors.mean() / values.std() == pytest.approx(1.0, abs=0.2)


def test_saturation_of_known_colours_and_of_any() -> None:
    def flat(*colour: float) -> Tensor:
        return torch.tensor(colour, dtype=torch.float32)[None, :, None, None].expand(1, 3, 4, 4)

    for colour, expected in (
        ((1, -1, -1), 1.0), ((-0.2, -1, -1), 1.0), ((0.3, 0.3, 0.3), 0.0), ((-1, -1, -1), 0.0), ((1, 0, 0), 0.5),
        ((3, -5, -5), 1.0), ((7, 3, 2), 0.0),
    ):  # fmt: skip
        assert saturation(flat(*colour))[0] == pytest.approx(expected)
    x = normal(5, 3, 4, 4).clamp(-1, 1)
    by_colorsys = [[colorsys.rgb_to_hsv(*(0.5 + 0.5 * c).tolist())[1] for c in p.flatten(1).T] for p in x]
    means = torch.tensor(by_colorsys, dtype=torch.float64).mean(1)
    assert saturation(x) == pytest.approx((means.mean().item(), means.std().item() / 5**0.5))


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


def test_resamplings_are_the_same_for_all_who_ask() -> None:
    found = images.resamplings(7, repeats=2000)
    assert torch.equal(found, images.resamplings(7, repeats=2000)) and found.shape == (2000, 7)
    assert not torch.equal(found, images.resamplings(7, repeats=2000, seed=1))
    counts = torch.nn.functional.one_hot(found, 7).sum(1).double()  # how often each unit is in each: binomial
    assert counts.mean(0).tolist() == pytest.approx([1] * 7, abs=0.1)
    assert counts.var(0).tolist() == pytest.approx([6 / 7] * 7, abs=0.1)
    for said, arguments in {"count is 0": (0, 5), "repeats is 1.5": (3, 1.5)}.items():
        with pytest.raises(ValueError, match=said):
            images.resamplings(*arguments)  # type: ignore[arg-type]
