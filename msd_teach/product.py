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
from .tensors import at_least_float32, noise_like, per_item

KERNELS = ("exact", "exponential", "explicit")


@dataclass(frozen=True, eq=False)
class _Product:
    denoise: Denoiser
    x: Tensor
    λ: Tensor  # padded against x

    def _asked(self, z: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """The state and the noise level that the model is asked about."""
        s = per_item(sigma, z)
        w = 1 / (1 + (s / self.λ) ** 2)
        return self.x + w * (z - self.x), s * w.sqrt()

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        return self.denoise(*self._asked(z, sigma))

    def cost(self, z: Tensor, sigma: float | Tensor) -> int:
        return cost(self.denoise, *self._asked(z, sigma))


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
    return _Product(denoise, x, per_item(bandwidth, x, "bandwidth", positive=True))


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
    start: Tensor | None = None,
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

    `start`, of x's shape, replaces the start of any kernel by a state at `sigmas[0]` (of an earlier draw, say), and
    nothing is drawn. States are in float32 or better, whatever x is.

    Raises:
        ValueError: an unknown kernel, clock or solver; a bandwidth that is not positive (and finite, for "exact", which
            starts at D(x; λ)); an interval that misses the noise levels; a centre that does not lie on them; a start of
            another shape; an option that the chosen kernel does not have.
    """
    levels = descending(sigmas, solver)
    x = at_least_float32(x)
    λ = per_item(bandwidth, x, "bandwidth", positive=True)
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; it may be one of {', '.join(KERNELS)}")
    if kernel != "exponential" and (clock != "heat" or interval is not None or centre is not None):
        raise ValueError(f"clock, interval and centre belong to kernel='exponential'; kernel is {kernel!r}")
    if kernel == "exact" and not λ.isfinite().all():
        raise ValueError("bandwidth is inf; for kernel='exact', which starts at D(x; λ), it must be finite")
    if start is not None and start.shape != x.shape:
        raise ValueError(f"start has shape {tuple(start.shape)}; it must be x's, {tuple(x.shape)}")
    begin = levels[0] * noise_like(x, generator) if start is None else at_least_float32(start)
    if kernel == "exact":
        with torch.no_grad():
            begin = begin if start is not None else denoise(x, λ) + begin
        return sample(product_denoiser(denoise, x, λ), begin, sigmas, solver)
    if kernel == "explicit":
        return sample(
            lambda z, sigma: denoise(z, sigma) + (per_item(sigma, z) / λ) ** 2 * (x - z), begin, sigmas, solver
        )
    times = _kernel_times(levels, clock, interval)
    centres = list(centre) if centre is not None else [x] * len(levels)
    if len(centres) != len(levels) or any(c.shape != x.shape for c in centres):
        shapes = sorted({tuple(c.shape) for c in centres})
        raise ValueError(
            f"centre has {len(centres)} states of shapes {shapes}; it must have one for each of the "
            f"{len(levels)} sigmas, of x's shape {tuple(x.shape)}"
        )
    if start is None:
        begin = centres[0] + (begin - centres[0]) * _decay(times[0], λ)
    return _exponential(denoise, levels, times, centres, λ, solver, begin)


def _decay(h: float, λ: Tensor) -> Tensor:
    """e^{−h/λ²}; dividing twice, because λ² may underflow where h is 0."""
    return (-h / λ / λ).exp()


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
    yield z
    for (here, there), h, c in zip(pairwise(levels), times[1:], centres[1:], strict=True):
        z = solver_step(denoise, z, here, there, solver)
        z = c + (z - c) * _decay(h, λ)
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
