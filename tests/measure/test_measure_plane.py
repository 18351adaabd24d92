import math

import numpy as np
import pytest
import torch
from reference import random_mixture
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from msd_teach import GaussianMixture
from msd_teach.measure import plane as metrics
from msd_teach.measure.plane import best_multiple, efficiency, mmd2, nll, precision_recall

NAN = float("nan")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(mean: list[float], covariance: list[list[float]]) -> GaussianMixture:
    return GaussianMixture(torch.ones(1), torch.tensor([mean]), torch.tensor([covariance], dtype=torch.float64))


def test_nll_of_draws_is_the_entropy_of_a_gaussian():
    """log 2πe + ½ log det Σ in the plane, with standard error 1/√n, since |z|²/2 has variance 1."""
    p, n = normal([0.3, -1.0], [[0.5, 0.2], [0.2, 0.1]]), 20_000
    x = p.sample(n, generator=torch.Generator().manual_seed(0))
    entropy = math.log(2 * math.pi * math.e) + math.log(0.5 * 0.1 - 0.2**2) / 2
    assert abs(nll(p, x) - entropy) < 4 / math.sqrt(n)


def test_nll_is_exact_where_the_density_has_all_but_vanished():
    at = torch.tensor([[300.0, 0.0], [0.0, 400.0]])
    assert nll(normal([0, 0], [[1, 0], [0, 1]]), at) == pytest.approx(math.log(2 * math.pi) + (9e4 + 16e4) / 4)


def nearest_neighbours_share(points: np.ndarray, centres: np.ndarray, k: int, algorithm) -> float:
    distances, _ = NearestNeighbors(n_neighbors=k, algorithm=algorithm).fit(centres).kneighbors()  # others only
    return float(np.mean([(np.hypot(*(centres - p).T) <= distances[:, -1]).any() for p in points]))


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("kind", ["spread", "collapsed", "copied"])
def test_precision_and_recall_against_scikit_learn(kind, k, monkeypatch):
    reference = random_mixture(2).sample(300, generator=torch.Generator().manual_seed(1))
    generated = 0.8 * draw(2, 170, 2) + 0.2
    if kind == "collapsed":  # most points on 20 places, of one to nine copies, half of them also reference points
        places = torch.cat([generated[:10], reference[:10]])
        generated = torch.cat([places.repeat_interleave(torch.arange(20) % 9 + 1, dim=0), generated[10:40]])
    elif kind == "copied":
        generated = reference[:40]
    monkeypatch.setattr(metrics, "BLOCK", 7 * 300)  # many blocks and a ragged last one
    algorithm = "brute" if kind == "spread" else "kd_tree"  # the former's distances between copies are not 0
    a, b = generated.numpy(), reference.numpy()
    wanted = nearest_neighbours_share(a, b, k, algorithm), nearest_neighbours_share(b, a, k, algorithm)
    assert precision_recall(generated, reference, k) == pytest.approx(wanted, abs=1e-12)
    assert 0 < wanted[1] < 1


def test_identical_sets_cover_each_other_and_distant_sets_do_not():
    x = draw(3, 200, 2)
    assert precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)


def test_precision_and_recall_of_a_collapsed_sampler():
    """All points on one reference point: every one is near the reference, and of that only the point itself is near."""
    reference = draw(4, 400, 2)
    assert precision_recall(reference[5].expand(50, 2), reference) == (1, 1 / 400)


def test_precision_and_recall_do_not_depend_on_the_origin():
    """At 1e7 the form |x|² − 2xy + |y|² would be off by the distance of two neighbours."""
    x, y = draw(22, 150, 2), 0.7 * draw(23, 200, 2)
    assert precision_recall(x + 1e7, y + 1e7) == precision_recall(x, y)


def rbf(a: Tensor, b: Tensor, h: float) -> float:
    return math.exp(-float((a - b).square().sum()) / (2 * h**2))


@pytest.mark.parametrize("h", [0.4, None])
def test_mmd_against_a_double_loop(h, monkeypatch):
    x, y = draw(5, 23, 2), draw(6, 31, 2) * 0.5 + 0.3
    n = [len(x), len(y)]
    pairs = sorted(math.dist(y[i], y[j]) for i in range(n[1]) for j in range(i))
    width = h or pairs[(len(pairs) - 1) // 2]
    within = [sum(rbf(a[i], a[j], width) for i in range(len(a)) for j in range(i)) for a in (x, y)]
    across = sum(rbf(a, b, width) for a in x for b in y)
    wanted = sum(2 * s / (m * (m - 1)) for s, m in zip(within, n, strict=True)) - 2 * across / (n[0] * n[1])
    monkeypatch.setattr(metrics, "BLOCK", 100)
    assert mmd2(x, y, h) == pytest.approx(wanted, rel=1e-12)


def test_the_median_heuristic_ignores_what_is_judged_and_thins_a_large_reference(monkeypatch):
    x, y = draw(7, 40, 2), draw(8, 90, 2)
    h = float(torch.pdist(y[::3]).median())
    monkeypatch.setattr(metrics, "PAIRED", 30)
    assert [mmd2(s * x, y) for s in (1, 50)] == [mmd2(s * x, y, h) for s in (1, 50)]


def test_mmd_averages_to_that_of_two_gaussians():
    """E k(a, b) = h² |h²I + Σ|^(−½) exp(−½ δᵀ(h²I + Σ)⁻¹δ), where a − b ~ N(δ, Σ)."""
    h, shift = 0.7, torch.tensor([0.5, -0.2], dtype=torch.float64)
    scale = torch.tensor([[0.6, 0.0], [0.3, 1.2]], dtype=torch.float64)
    eye, Σ = torch.eye(2, dtype=torch.float64), scale @ scale.T

    def kernel(δ: Tensor, covariance: Tensor) -> float:
        v = h**2 * eye + covariance
        return float(h**2 / v.det().sqrt() * (-δ @ torch.linalg.solve(v, δ) / 2).exp())

    population = kernel(0 * shift, 2 * eye) + kernel(0 * shift, 2 * Σ) - 2 * kernel(shift, eye + Σ)
    g = torch.Generator().manual_seed(9)
    x, y = (torch.randn(1000, n, 2, generator=g, dtype=torch.float64) for n in (40, 60))
    different = torch.tensor([mmd2(a, b @ scale.T + shift, h) for a, b in zip(x, y, strict=True)])
    equal = torch.tensor([mmd2(a, b, h) for a, b in zip(x, y, strict=True)])
    for estimates, truth in ((different, population), (equal, 0.0)):
        error = float(estimates.std()) / math.sqrt(1000)
        assert abs(float(estimates.mean()) - truth) < 4 * error < 0.006  # the diagonals would add .033


@pytest.mark.parametrize("known", [True, False], ids=["reference", "own mean"])
def test_efficiency_of_a_gradient_plus_noise(known):
    """MSE = s² d for every x; its estimate from n numbers has a relative error of √(2/n)."""
    g, s, N = draw(10, 50, 80, 2) + 1, 0.03, 3
    estimates = g + s * draw(11, N, *g.shape)
    wanted = math.log(float(g.square().sum()) / (s**2 * g.numel() * 7))
    got = efficiency(estimates, g if known else None, calls=7)
    assert got.log == pytest.approx(wanted, abs=4 * math.sqrt(2 / (g.numel() * (N if known else N - 1))))
    assert not got.floored


def test_efficiency_does_not_depend_on_the_scale():
    g = draw(12, 20, 2)
    estimates = g + 0.2 * draw(13, 5, 20, 2)
    for reference in (g, None):
        logs = [efficiency(a * estimates, None if reference is None else a * g, 3).log for a in (1, 1e-7, -1e5)]
        assert logs == pytest.approx([logs[0]] * 3, rel=1e-12)


@pytest.mark.parametrize(("dtype", "ε"), [(torch.float64, 2.0**-52), (torch.float32, 2.0**-23)])
def test_an_error_of_rounding_size_is_floored_and_marked(dtype, ε):
    g = draw(14, 30, 2).to(dtype)
    for estimates, reference in ((g.expand(100, 30, 2), None), (g[None], g), ((g * (1 + 14 * ε))[None], g)):
        got = efficiency(estimates, reference, calls=2)
        assert got.floored
        assert got.log == pytest.approx(-2 * math.log(16 * ε) - math.log(2))
    assert not efficiency((g * (1 + 18 * ε))[None], g, calls=2).floored
    assert efficiency((g * (1 + 18 * ε))[None], g, calls=2, floor=100).floored


def test_the_coarser_dtype_sets_the_floor():
    g = draw(15, 30, 2)
    assert efficiency(g[None], g.float(), 1).floored
    assert efficiency(g.float()[None], g, 1).floored


def test_best_multiple_against_a_linear_solver():
    g = draw(16, 25, 2)
    estimates = 37 * g + 20 * draw(17, 4, 25, 2)
    column = estimates.reshape(-1, 1)
    c = torch.linalg.lstsq(column, g.expand_as(estimates).reshape(-1, 1)).solution
    torch.testing.assert_close(best_multiple(estimates, g), estimates * c.squeeze())
    torch.testing.assert_close(best_multiple(-estimates, g), best_multiple(1e-3 * estimates, g))
    cosine = torch.nn.functional.cosine_similarity(column, g.expand_as(estimates).reshape(-1, 1), dim=0)
    wanted = -math.log(1 - float(cosine) ** 2) - math.log(6)
    assert efficiency(best_multiple(estimates, g), g, calls=6).log == pytest.approx(wanted, rel=1e-12)


def test_an_estimator_that_knows_nothing_is_best_silent():
    g = draw(18, 25, 2)
    best = best_multiple(draw(19, 2000, 25, 2), g)
    assert efficiency(best, g, calls=6).log == pytest.approx(-math.log(6), abs=1e-3)


X, G = draw(20, 6, 2), draw(21, 5, 2)
P = normal([0, 0], [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nll(P, X[:, :1]), r"x has shape \(6, 1\).* must be \(n, 2\) with n >= 1"),
        (lambda: nll(P, X[:0]), r"x has shape \(0, 2\)"),
        (lambda: nll(P, X / 0), "x contains -?inf; all values must be finite"),
        (lambda: precision_recall(X[:3], X), r"generated has shape \(3, 2\).* n >= 4"),
        (lambda: precision_recall(X, X[:3]), r"reference has shape \(3, 2\).* n >= 4"),
        (lambda: precision_recall(X, X[:, :1]), r"reference has shape \(6, 1\).* must be \(n, 2\)"),
        (lambda: precision_recall(X, X.round().long()), r"reference .* torch.int64; .* of floats"),
        (lambda: precision_recall(X, X * NAN), "reference contains nan"),
        (lambda: precision_recall(X.numpy(), X), "generated is a ndarray; it must be a torch tensor"),  # pyright: ignore
        (lambda: efficiency(G[None].numpy(), G, 1), "estimates is a ndarray"),  # pyright: ignore
        (
            lambda: efficiency(G[None].to(torch.complex128), G, 1),
            "estimates has shape .* torch.complex128; .* of floats",
        ),
        (lambda: precision_recall(X, X, k=0), "k is 0; it must be a whole number, at least 1"),
        (lambda: precision_recall(X, X, k=2.5), "k is 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: mmd2(X[:1], X), r"x has shape \(1, 2\).* n >= 2"),
        (lambda: mmd2(X, X[0]), r"y has shape \(2,\)"),
        (lambda: mmd2(X, X, 0.0), "bandwidth is 0.0; it must be positive"),
        (lambda: mmd2(X, X[:1].expand(6, 2)), "median distance within y is 0.0; it must be positive"),
        (lambda: efficiency(G[None], None, 1), r"estimates has shape \(1, 5, 2\).* N >= 2"),
        (lambda: efficiency(G, G, 1), r"reference has shape \(5, 2\).* must be \(2,\), as estimates\[0\]"),
        (lambda: efficiency(G[None] * NAN, G, 1), "estimates contains nan"),
        (lambda: efficiency(G[None], G * NAN, 1), "reference contains nan"),
        (lambda: efficiency(G[None], 0 * G, 1), "is 0 everywhere; the gradient must not vanish"),
        (lambda: efficiency(G[None], G, 0), "calls is 0; it must be positive"),
        (lambda: efficiency(G[None], G, 1, floor=0.0), "floor is 0.0; it must be positive"),
        (lambda: best_multiple(G, G), r"reference has shape \(5, 2\)"),
        (lambda: best_multiple(0 * G[None], G), "estimates are 0 everywhere"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
