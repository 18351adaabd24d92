"""The product density q(y | x) ∝ p(y) N(y; x, λ²I) (Eq. 8): its exact denoiser, and three ways to sample it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .denoisers import Denoiser, cost
from .sampling import descending, sample, solver_step
from .tensors import noise_like, per_item

KERNELS = ("exact", "exponential", "explicit")


@dataclass(frozen=True)
class _Product:
    denoise: Denoiser
    x: Tensor
    bandwidth: float | Tensor

    def _share_of_z(self, z: Tensor, sigma: Tensor) -> Tensor:
        bandwidth = per_item(self.bandwidth, self.x, "bandwidth", positive=True)
        return 1 / (1 + (sigma / bandwidth) ** 2)

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        s = per_item(sigma, z)
        w = self._share_of_z(z, s)
        return self.denoise(self.x + w * (z - self.x), s * w.sqrt())

    def cost(self, z: Tensor, sigma: float | Tensor) -> int:
        s = per_item(sigma, z)
        return cost(self.denoise, z, s * self._share_of_z(z, s).sqrt())


def product_denoiser(denoise: Denoiser, x: Tensor, bandwidth: float | Tensor) -> Denoiser:
    """The denoiser of q(y | x) ∝ p(y) N(y; x, λ²I), exact wherever `denoise` is.

    Seeing y through noise σ as z, and through noise λ as x, is seeing it once:

        D_q(z; σ | x) = D((λ²z + σ²x)/(λ² + σ²); λσ/√(λ² + σ²))

    `x` has shape (*batch, *event); z may carry further axes on the left (N samples for each x). `bandwidth` is λ, the
    kernel's standard deviation: a number, or a tensor whose shape is a prefix of x's. As λ → ∞ this is `denoise`. The
    model is never asked about a noise level above λ.

    Raises:
        ValueError: a bandwidth that is NaN or not positive.
    """
    per_item(bandwidth, x, "bandwidth", positive=True)
    return _Product(denoise, x, bandwidth)


def heat(sigma: float) -> float:
    """The clock t = σ²/2 in which the kernel's exponential decay e^{−Δt/λ²} is exact."""
    return sigma**2 / 2


def sample_product(
    denoise: Denoiser,
    x: Tensor,
    bandwidth: float | Tensor,
    sigmas: Tensor,
    kernel: str = "exact",
    clock: str | Callable[[float], float] = "heat",
    interval: tuple[float, float] | None = None,
    centre: Sequence[Tensor] | None = None,
    solver: str = "heun",
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Draws one sample of q(y | x) for every x of shape (*batch, *event): a generator of states, the sample last.

    - "exact": an ordinary sampler on `product_denoiser`, from D(x; λ) + σ_max n. One extra denoiser call.
    - "explicit": the sum of the noisy score and the clean kernel's score (Eq. 12, signs corrected), from σ_max n.
      Unstable once σ|Δσ| > 2λ².
    - "exponential": an ordinary solver step, then the kernel's own flow z ← c + (z − c) e^{−h/λ²} (Eq. 15), with
      h the time passed on `clock`. It targets the same sum of scores, and is stable for any step.

    Of the exponential kernel alone: `clock` is "heat" (σ²/2, where `bandwidth` λ is the kernel's standard deviation) or
    a function of σ (then λ is in units of √clock); `interval` (low, high) limits the kernel to these noise levels;
    `centre` gives c at each of `sigmas`, x if left out. The start is c₀ + (σ_max n − c₀) e^{−h₀/λ²} (Algorithm 2), or
    σ_max n where σ_max lies above the interval.

    Raises:
        ValueError: an unknown kernel, clock or solver; a bandwidth that is not positive (and finite, for "exact", which
            starts at D(x; λ)); an interval that misses the noise levels; a centre that does not lie on them; an option
            that the chosen kernel does not have.
    """
    levels = descending(sigmas, solver)
    λ = per_item(bandwidth, x, "bandwidth", positive=True)
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; it may be one of {', '.join(KERNELS)}")
    if kernel != "exponential" and (clock != "heat" or interval is not None or centre is not None):
        raise ValueError(f"clock, interval and centre belong to kernel='exponential'; kernel is {kernel!r}")
    if kernel == "exact" and not λ.isfinite().all():
        raise ValueError("bandwidth is inf; for kernel='exact', which starts at D(x; λ), it must be finite")
    n = levels[0] * noise_like(x, generator)
    if kernel == "exact":
        return _exact(denoise, x, λ, sigmas, solver, n)
    if kernel == "explicit":
        return sample(lambda z, sigma: denoise(z, sigma) + per_item(sigma, z) ** 2 / λ**2 * (x - z), n, sigmas, solver)
    times = _kernel_times(levels, clock, interval)
    centres = list(centre) if centre is not None else [x] * len(levels)
    if len(centres) != len(levels) or any(c.shape != x.shape for c in centres):
        shapes = sorted({tuple(c.shape) for c in centres})
        raise ValueError(
            f"centre has {len(centres)} states of shapes {shapes}; it must have one for each of the "
            f"{len(levels)} sigmas, of x's shape {tuple(x.shape)}"
        )
    return _exponential(denoise, levels, times, centres, λ, solver, n)


@torch.no_grad()
def _exact(denoise: Denoiser, x: Tensor, λ: Tensor, sigmas: Tensor, solver: str, n: Tensor) -> Iterator[Tensor]:
    yield from sample(product_denoiser(denoise, x, λ), denoise(x, λ) + n, sigmas, solver)


@torch.no_grad()
def _exponential(
    denoise: Denoiser,
    levels: list[float],
    times: list[float],
    centres: list[Tensor],
    λ: Tensor,
    solver: str,
    z: Tensor,
) -> Iterator[Tensor]:
    z = centres[0] + (z - centres[0]) * (-times[0] / λ**2).exp()
    yield z
    for (here, there), h, c in zip(pairwise(levels), times[1:], centres[1:], strict=True):
        z = solver_step(denoise, z, here, there, solver)
        z = c + (z - c) * (-h / λ**2).exp()
        yield z


def _kernel_times(
    levels: list[float], clock: str | Callable[[float], float], interval: tuple[float, float] | None
) -> list[float]:
    """Clock time of the kernel at the start and in each step: 0 outside the interval, a share where a step straddles.

    The start gets the first step's time (Algorithm 2), unless it lies above the interval.
    """
    if isinstance(clock, str) and clock != "heat":
        raise ValueError(f"clock is {clock!r}; it may be 'heat' or a function of sigma")
    time = heat if isinstance(clock, str) else clock
    low, high = interval or (levels[-1], levels[0])
    if not low < high or low >= levels[0] or high <= levels[-1]:
        raise ValueError(f"interval is {interval}; it must be (low, high) and overlap {levels[-1]:g} to {levels[0]:g}")
    inside = [min(max(level, low), high) for level in levels]
    elapsed = [time(a) - time(b) if a > b else 0.0 for a, b in pairwise(inside)]
    if not all(math.isfinite(h) and h >= 0 for h in elapsed):
        raise ValueError("clock must be finite and increase with sigma at every noise level")
    return [elapsed[0] if levels[0] <= high else 0.0, *elapsed]
