"""The one interface of the package, D(z; σ) = E[y | z = y + σn], and denoisers that need no training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from .tensors import at_least_one, check_points, per_item, right_pad, widest


class Denoiser(Protocol):
    """Maps z (*batch, *event), noisy at standard deviation `sigma`, to the posterior mean E[y | z] of the same shape.

    `sigma` is a number or a tensor whose shape is a prefix of z's.
    """

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor: ...


SMALLEST_SIGMA = 1e-12  # below it float32 logits could overflow; the softmax has long become an arg max
FINE = 0.004  # σ over the data's radius below which float32 logits, of size (radius/σ)², lose the digits that matter
HEAD_MULTIPLE = 8  # fused attention kernels on GPUs want the head size in multiples of 8
CHUNK = 2**20  # numbers in float64 at a time, while keys are made


class IdealDenoiser:
    """The exact denoiser of a training set, D*(z; σ) = softmax(−|z − yᵢ|²/2σ²)·y (Eq. 16), as one attention read.

    `data` has shape (M, *event), and is copied. The query is z/σ², the keys are the data with −|y|²/2 as one more
    coordinate, the values are the keys again; the terms in |z|² cancel in the softmax. Memory grows with queries +
    data, not with their product, wherever torch has a fused kernel (CPU: float32 and float64; CUDA: not float64). At
    σ = 0 the result is the nearest datum (any mixture of them on a tie). Differentiable in reverse mode, once.

    Raises:
        ValueError: no data, data that are not finite, an event shape other than the data's, sigma < 0 or NaN.
    """

    def __init__(self, data: Tensor):
        if not isinstance(data, Tensor) or not data.is_floating_point():
            said = f"a tensor of {data.dtype}" if isinstance(data, Tensor) else f"of type {type(data).__name__}"
            raise ValueError(f"data is {said}; it must be a tensor of floats, (M, *event)")
        if data.ndim < 2 or not data.numel():
            raise ValueError(f"data has shape {tuple(data.shape)}; it must be (M, *event) with M >= 1")
        if not data.isfinite().all():
            raise ValueError("data contains NaN or infinite values; all must be finite")
        self.event = data.shape[1:]
        with torch.inference_mode(False):  # a reader that comes later may want gradients
            self.data = data.detach().flatten(1).clone()
            # Rounding in a logit grows with |z||y|/σ², so the origin goes to the middle of the data.
            self.centre = self.data.mean(0, dtype=widest(data.device))
        self._keys: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        half_squares = self.keys(torch.promote_types(data.dtype, torch.float32), data.device)[:, len(self.centre)]
        self.radius = (-2 * half_squares.min().item()) ** 0.5

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        level = per_item(sigma, z)
        self._check_event(z)
        if level.ndim and level.shape[z.ndim - len(self.event) :].numel() != 1:
            raise ValueError(f"sigma has shape {tuple(level.shape)}; it may not vary within an event")
        kind = torch.promote_types(z.dtype, torch.float32)
        rows = z.to(kind).reshape(-1, len(self.centre))
        s = level.to(z.device, widest(z.device)).expand(z.shape).reshape(-1, len(self.centre))[:, :1]
        fine = s[:, 0] < (FINE * self.radius if kind == torch.float32 and z.device.type == "cpu" else 0)
        if fine.all():
            return self._read(rows.double(), s).to(z.dtype).reshape(z.shape)
        mean = self._read(rows, s)
        if fine.any():
            mean = mean.index_put((fine.nonzero()[:, 0],), self._read(rows[fine].double(), s[fine]).to(kind))
        return mean.to(z.dtype).reshape(z.shape)

    def posterior_sample(
        self, z: Tensor, sigma: float, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """Data drawn from the posterior of y given z, (samples, *z.shape), for z of shape (*batch, *event).

        At z = x and σ = λ these are perfect draws of the product density p(y) N(y; x, λ²I), for the price of one look at
        all data.

        Raises:
            ValueError: as for a call; samples that are not 1, 2, …
        """
        check_points(z)
        samples, level = at_least_one("samples", samples), float(per_item(sigma, z.new_zeros(())))
        self._check_event(z)
        if not z.isfinite().all():
            raise ValueError("z contains NaN or infinite values; all must be finite")
        rows = z.double().reshape(-1, len(self.centre)) - self.centre.to(z.device)
        keys, d = self.keys(torch.float64, z.device), rows.shape[1]
        parts: list[Tensor] = []
        for part in rows.split(max(1, 4 * CHUNK // len(keys))):
            weights = ((part @ keys[:, :d].T + keys[:, d]) / max(level, SMALLEST_SIGMA) ** 2).softmax(-1)
            weights = weights if generator is None else weights.to(generator.device)
            parts.append(torch.multinomial(weights, samples, replacement=True, generator=generator))
        index = torch.cat(parts).T.to(self.data.device)
        return self.data[index].to(z.device, z.dtype).reshape(samples, *z.shape)

    def _check_event(self, z: Tensor) -> None:
        if z.shape[max(0, z.ndim - len(self.event)) :] != self.event:
            raise ValueError(f"z has shape {tuple(z.shape)}; it must end in the data's event shape {tuple(self.event)}")

    @torch.inference_mode(False)
    def keys(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The data about their centre, −|y|²/2 of each, and zeros up to a multiple of 8: (M, width), made once."""
        if (dtype, device) not in self._keys:
            count, d = self.data.shape
            keys = torch.zeros(count, d + 1 + -(d + 1) % HEAD_MULTIPLE, dtype=dtype, device=device)
            rows = max(1, CHUNK // d)
            for part, some in zip(keys.split(rows), self.data.split(rows), strict=True):
                y = (
                    some.double() - self.centre
                )  # half a square rounded to float32 would shift a logit by 1 at σ = .0002
                part[:, :d], part[:, d] = y, -y.square().sum(-1) / 2
            self._keys[dtype, device] = keys
        return self._keys[dtype, device]

    def _read(self, z: Tensor, sigma: Tensor) -> Tensor:
        """The attention read in z's precision, for rows z (n, d) and sigma (n, 1)."""
        keys, centre = self.keys(z.dtype, z.device), self.centre.to(z.device, z.dtype)
        s = sigma.to(z.dtype).clamp(min=SMALLEST_SIGMA)
        query = torch.cat([z - centre, torch.ones_like(s)], dim=-1) / s.square()
        q = pad(query, (0, keys.shape[1] - query.shape[1]))[None, None]
        with torch.autocast(z.device.type, enabled=False):  # whose bfloat16 would round a logit by whole units
            mean = scaled_dot_product_attention(q, keys[None, None], keys[None, None], scale=1.0)
        return mean[0, 0, :, : len(centre)] + centre


Scale = float | Tensor | Callable[[float | Tensor], float | Tensor]
"""A guidance scale s: a number, a tensor whose shape is a prefix of z's, or a function of sigma that gives either."""


@dataclass(frozen=True, eq=False)  # two are never compared: tensors would answer item by item
class Guided:
    """What `guided` gives: u + s·(c − u). A room that gets both answers from one call overrides `both`."""

    cond: Denoiser
    uncond: Denoiser
    scale: Scale

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        s = self._strength(z, sigma)
        if (s == 1).all():
            return self.cond(z, sigma)
        if (s == 0).all():
            return self.uncond(z, sigma)
        u, c = self.both(z, sigma)
        return u + s * (c - u)

    def both(self, z: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional answer."""
        return self.uncond(z, sigma), self.cond(z, sigma)

    def rescaled(self, scale: Scale) -> Denoiser:
        """The same two denoisers at another scale."""
        check_scale(scale)
        return replace(self, scale=scale)

    def cost(self, z: Tensor, sigma: float | Tensor) -> int:
        """1 where one of the two answers is not needed, else 2 (times their own cost)."""
        s = self._strength(z, sigma)
        needed = [(self.cond, (s != 0).any()), (self.uncond, (s != 1).any())]
        return sum(cost(term, z, sigma) for term, used in needed if used)

    def _strength(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        s = _asked(self.scale, sigma) if callable(self.scale) else self.scale
        return right_pad(s, z, "scale")


def _asked(scale: Callable[[float | Tensor], float | Tensor], sigma: float | Tensor) -> float | Tensor:
    """The scale at sigma; a function that compares sigma with something is asked about each of several levels alone."""
    try:
        s = scale(sigma)
    except RuntimeError:  # "Boolean value of Tensor with more than one value is ambiguous"
        if not isinstance(sigma, Tensor) or sigma.numel() < 2:
            raise
        s = torch.tensor([float(scale(level)) for level in sigma.flatten().tolist()]).reshape(sigma.shape)
    check_scale(s)
    return s


def guided(cond: Denoiser, uncond: Denoiser, scale: Scale) -> Guided:
    """Classifier-free guidance u + s·(c − u) as a denoiser; a term with coefficient 0 is not computed.

    `scale` is s: a number (negative to invert, as SDI does), a tensor whose shape is a prefix of z's, or a function of
    sigma that returns either (guidance in a limited interval). The paper's Eq. 13, (1 + w)·c − w·u, is s = 1 + w.
    Inside `product_denoiser` a function is asked about the smaller noise level that the model sees there.

    Raises:
        ValueError: a scale that is no finite number.
    """
    check_scale(scale)
    return Guided(cond, uncond, scale)


def rescaled(denoise: Denoiser, scale: Scale) -> Denoiser:
    """The same denoiser, of the same prompts and views, at another guidance scale.

    Raises:
        ValueError: a denoiser that has no guidance scale.
    """
    own = getattr(denoise, "rescaled", None)
    if own is None:
        raise ValueError(f"denoise is {denoise!r}, which has no guidance scale; give a denoiser instead of {scale}")
    return own(scale)


def check_scale(scale: object) -> None:
    """Refuse a guidance scale that is neither a function nor made of finite numbers."""
    number = isinstance(scale, Real) or (isinstance(scale, Tensor) and not scale.is_complex())
    if not callable(scale) and not (number and torch.as_tensor(scale).isfinite().all()):
        raise ValueError(f"scale is {scale!r}; it must be a finite number, a tensor of them, or a function of sigma")


def cost(denoise: Denoiser, z: Tensor, sigma: float | Tensor) -> int:
    """Evaluations of the underlying model that one call spends on each item: 1, and 2 under guidance."""
    own = getattr(denoise, "cost", None)
    return 1 if own is None else own(z, sigma)


class counted:
    """The same denoiser with `calls`, its cost so far for each item of the batch (a guided call costs 2)."""

    def __init__(self, denoise: Denoiser):
        self.denoise = denoise
        self.calls = 0
        self._of: counted | None = None  # which this one is at another scale

    def __call__(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        self._add(self.cost(z, sigma))
        return self.denoise(z, sigma)

    def _add(self, calls: int) -> None:
        self.calls += calls
        if self._of is not None:
            self._of._add(calls)

    def cost(self, z: Tensor, sigma: float | Tensor) -> int:
        return cost(self.denoise, z, sigma)

    def rescaled(self, scale: Scale) -> counted:
        """The same at another guidance scale; its calls are counted here too."""
        other = counted(rescaled(self.denoise, scale))
        other._of = self
        return other
