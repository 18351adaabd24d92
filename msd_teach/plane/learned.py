"""A small network that learns the denoiser of a density: the toy model of Karras et al. 2024, from its description."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..files import Checkpoint
from ..tensors import at_least_one, noise_like, per_item
from .mixture import GaussianMixture

SIGMA_DATA = 0.5  # standard deviation that the network expects of the data, an axis
SILU_GAIN = 0.596  # root mean square of SiLU of a standard normal variable
LAYERS = 4
RECIPE = 1  # raise it whenever training changes: what older recipes left in a cache is then ignored
ROUND = 512  # iterations between checkpoints; each round draws new points
REUSE = 8  # how often a round uses each of its points, since their exact scores cost more than the network's steps
LEVELS = 1024  # noise levels a round: a mixture's scores are 10 times cheaper where many points share one
SLICE = 1024  # points at a time: a quarter faster than a batch of 4096 whose tables leave the cache


class LearnedDenoiser(nn.Module):
    """A network's denoiser D(z; σ) = z + σ² ∇ log p(z; σ), with the gradient of a learned log-density.

    Called as denoise(z, sigma), z of shape (*batch, dimensions) and sigma a number or a tensor whose shape is a prefix
    of z's. Dtype and device follow z; the network computes in float32. `torch.func.grad` takes the gradient, under
    `torch.no_grad` too; where gradients are on, D can be differentiated in its turn (∂D/∂z is symmetric).

    Raises:
        ValueError: z without a last axis of `dimensions`, sigma < 0 or NaN, or one that varies within a point.
    """

    def __init__(self, dimensions: int = 2, width: int = 64, generator: torch.Generator | None = None):
        super().__init__()
        dimensions, width = at_least_one("dimensions", dimensions), at_least_one("width", width)
        self.dimensions = dimensions
        inputs = [dimensions + 2] + [width] * LAYERS
        self.weights = nn.ParameterList(torch.randn(width, n, generator=generator) for n in inputs)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        x = z.to(torch.promote_types(z.dtype, torch.float32))  # in half precision σ² ∇ log p would overflow
        return (x + self._level(x, sigma) ** 2 * self.score(x, sigma)).to(z.dtype)

    def score(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """∇ log p(z; σ), of the shape of z."""
        return torch.func.grad(lambda x: self.log_density(x, sigma).sum())(z)

    def log_density(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """The learned log p(z; σ), up to a constant for each σ: (*batch, dimensions) to (*batch,) in float32."""
        σ = self._level(z, sigma).float().clamp(min=1e-6)  # for the logarithm; D(z; 0) is z whatever the score
        x = z.float() / (SIGMA_DATA**2 + σ**2).sqrt()
        one = torch.ones_like(x[..., :1])
        first, *others = (_unit_rows(w.to(z.device)) for w in self.weights)
        h = torch.cat([x, σ.log() / 4 * one, one], -1) @ first.mT  # (*batch, width)
        for w in others:
            h = silu(h) / SILU_GAIN @ w.mT
        energy = h.square().mean(-1, keepdim=True) * self.gain.to(z.device) / σ  # (*batch, 1)
        return energy[..., 0] - x.square().sum(-1) / 2

    def _level(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        if z.shape[-1:] != (self.dimensions,):
            raise ValueError(f"z has shape {tuple(z.shape)}; its last axis must be {self.dimensions}")
        level = per_item(sigma, z)
        if level.ndim and level.shape[-1] != 1:
            raise ValueError(f"sigma has shape {tuple(level.shape)}; it may not vary within a point")
        return level


def _unit_rows(w: Tensor) -> Tensor:
    """Rows of length 1: outputs keep the mean square of uncorrelated inputs (the layer is magnitude-preserving)."""
    return w / w.norm(dim=1, keepdim=True)


class TrainingInfo(NamedTuple):
    """After `iteration` steps: the mean loss since the last record (NaN if it was loaded) and the averaged network."""

    iteration: int
    loss: float
    denoiser: LearnedDenoiser


def train_denoiser(
    density: GaussianMixture,
    width: int = 64,
    iterations: int = 4096,
    batch: int = 4096,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> LearnedDenoiser:
    """Trains a `LearnedDenoiser` on the exact score of `density`; returns its averaged weights, frozen.

    Minimises E[σ² |score error|²] over ln σ ~ N(−2.3, 1.5²) and z ~ p_σ with Adam (Karras et al. 2024, toy example).
    The same seed gives the same network, on processors of one kind. With `cache`, a folder, the state
    is kept there every 512 iterations: a training that was interrupted goes on where it stopped and ends as if it had
    not been, a finished one is only loaded.

    Raises:
        ValueError: width, iterations or batch below 1 or not whole; a file in the cache that is damaged or of another
            training.
        FloatingPointError: the loss is not finite; names the iteration. The last checkpoint stays.
    """
    *_, last = training(density, width, iterations, batch, seed, cache)
    return last.denoiser


def training(
    density: GaussianMixture,
    width: int = 64,
    iterations: int = 4096,
    batch: int = 4096,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> Iterator[TrainingInfo]:
    """`train_denoiser` step by step: a generator of a record every 512 iterations and at the end."""
    counts = {"width": width, "iterations": iterations, "batch": batch}
    counts = {name: at_least_one(name, count) for name, count in counts.items()}
    identity = {"density": _digest(density)} | counts | {"seed": int(seed), "recipe": RECIPE}
    return _train(density, identity, None if cache is None else Path(cache).expanduser())


def _train(density: GaussianMixture, identity: dict[str, Any], cache: Path | None) -> Iterator[TrainingInfo]:
    iterations, batch = identity["iterations"], identity["batch"]
    state = _State(density.means.shape[1], identity["width"], identity["seed"])
    checkpoint = None
    if cache is not None:
        name = "-".join(f"{name}{value}" for name, value in identity.items())
        checkpoint = Checkpoint(cache / f"{name}.pt", identity, **state.parts())
        if kept := checkpoint.load():
            state.iteration = kept["iteration"]
            yield TrainingInfo(state.iteration, math.nan, copy.deepcopy(state.average))
    while state.iteration < iterations:
        with _one_thread():
            pool = training_points(density, -(-ROUND * batch // REUSE), state.generator)
            losses = []
            for _ in range(min(ROUND, iterations - state.iteration)):
                pick = torch.randint(len(pool), (batch,), generator=state.generator)
                losses.append(state.step(pool[pick]))
        if checkpoint is not None:
            checkpoint.save(iteration=state.iteration)
        yield TrainingInfo(state.iteration, math.fsum(losses) / len(losses), copy.deepcopy(state.average))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small are fastest so, and sums do not depend on how many cores there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def training_points(density: GaussianMixture, count: int, generator: torch.Generator) -> Tensor:
    """`count` or a few more training points in float32, each a row of z (d), σ (1) and ∇ log p_σ(z) (d)."""
    each = -(-count // LEVELS)
    y = density.sample(LEVELS * each, generator=generator).unflatten(0, (LEVELS, each))
    σ = (-2.3 + 1.5 * torch.randn(LEVELS, 1, 1, dtype=y.dtype, generator=generator)).exp()
    z = y + σ * noise_like(y, generator)
    score = torch.stack([density.score(*pair) for pair in zip(z, σ.flatten().tolist(), strict=True)])
    return torch.cat([z, σ.expand(LEVELS, each, 1), score], -1).flatten(0, 1).float()


class _State:
    """All that a training changes."""

    def __init__(self, dimensions: int, width: int, seed: int):
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.network = LearnedDenoiser(dimensions, width, self.generator)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), betas=(0.9, 0.99))

    def step(self, rows: Tensor) -> float:
        """One step of Adam and of the average; returns the loss."""
        self.iteration += 1
        self.optimizer.param_groups[0]["lr"] = 1e-2 / math.sqrt(max(self.iteration / 512, 1))
        self.optimizer.zero_grad()
        total = 0.0
        for part in rows.split(SLICE):
            z, σ, score = part.split([self.network.dimensions, 1, self.network.dimensions], dim=1)
            loss = (σ * (self.network.score(z, σ) - score)).square().sum() / len(rows)
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise FloatingPointError(f"training: the loss is {total} at iteration {self.iteration}")
        self.optimizer.step()
        follow(self.average, self.network, self.iteration)
        return total

    def parts(self) -> dict[str, Any]:
        """What a checkpoint keeps, beside the iteration."""
        return {name: getattr(self, name) for name in ("network", "average", "optimizer", "generator")}


def power_exponent(width: float) -> float:
    """γ of the average (γ+1)/T^{γ+1} ∫₀ᵀ t^γ θ(t) dt whose profile has the standard deviation `width`·T.

    That deviation is √((γ+1)/((γ+2)²(γ+3))) (Karras et al. 2024, EDM2), so γ is the largest root of
    γ³ + 7γ² + (16 − c)γ + 12 − c with c = 1/width². `width` is below that of a flat average, 1/√12.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"width is {width}; it must be > 0 and below {12**-0.5:.4f}")
    c = width**-2
    companion = torch.tensor([[-7, c - 16, c - 12], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    return float(torch.linalg.eigvals(companion).real.max())


EXPONENT = power_exponent(0.010)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, iteration: int) -> None:
    """A step of the power-function average, in which step t of T then weighs (t^{γ+1} − (t−1)^{γ+1})/T^{γ+1}."""
    share = 1 - (1 - 1 / iteration) ** (EXPONENT + 1)
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, share)


def _digest(density: GaussianMixture) -> str:
    parts = [part.detach().numpy().tobytes() for part in (density.weights, density.means, density.covariances)]
    return hashlib.sha256(b"".join([str(density.means.shape).encode(), *parts])).hexdigest()[:16]
