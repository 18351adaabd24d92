"""How far apart two sets of pictures are, in the features of any network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..tensors import at_least_one
from .inputs import points


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features (N, d) and (M, d), in float64 (Heusel et al. 2017).

    Raises:
        ValueError: fewer than d + 1 features, which leaves a covariance without full rank; other shapes, values that
            are not finite.
    """
    a = points("a", a, 2)
    b = points("b", b, 2, a.shape[1])
    for name, features in (("a", a), ("b", b)):
        if len(features) <= features.shape[1]:
            raise ValueError(
                f"{name} has {len(features)} features of {features.shape[1]} dimensions; it needs more than that"
            )
    # the trace of (S_a S_b)^(1/2), by the eigenvalues of S_a^(1/2) S_b S_a^(1/2)
    values, vectors = torch.linalg.eigh(torch.cov(a.T))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ torch.cov(b.T) @ root).clamp(min=0).sqrt().sum()
    spread = torch.cov(a.T).trace() + torch.cov(b.T).trace() - 2 * cross
    return float((a.mean(0) - b.mean(0)).square().sum() + spread)


def bootstrap(
    statistic: Callable[[Tensor, Tensor], float], a: Tensor, b: Tensor, repeats: int = 200, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of a distance of two samples, from its spread when both are drawn again with replacement.

    It is up to twice too wide where the true distance is zero.

    Raises:
        ValueError: fewer than one repeat, or what `statistic` refuses.
    """
    repeats = at_least_one("repeats", repeats)
    generator = torch.Generator().manual_seed(seed)

    def again(x: Tensor) -> Tensor:
        return x[torch.randint(len(x), (len(x),), generator=generator)]

    found = statistic(a, b)
    values = torch.tensor([statistic(again(a), again(b)) for _ in range(repeats)], dtype=torch.float64)
    # drawing again adds sampling noise, which a distance, never negative, counts as distance: that shift is taken out
    values += found - values.mean()
    return float(values.quantile(0.025)), float(values.quantile(0.975))
