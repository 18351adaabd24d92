"""Distillation: one loop that moves any differentiable `render` towards the targets of any method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .denoisers import Denoiser
from .targets import Method
from .tensors import per_item


class Rendered(NamedTuple):
    """What `render` may return besides x: the denoiser of this batch (its views, its prompts) and a penalty to add."""

    x: Tensor
    denoise: Denoiser | None = None
    penalty: float | Tensor = 0.0


class StepInfo(NamedTuple):
    """One step: its number, loss, noise level or bandwidth, mean |target − x|, and denoiser calls an item so far."""

    step: int
    loss: float
    level: float
    shift_norm: float
    calls: int


def distill(
    render: Callable[[torch.Generator | None], Tensor | Rendered],
    optimizer: torch.optim.Optimizer,
    denoise: Denoiser,
    method: Method,
    steps: int,
    stop_level: float | None = None,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[StepInfo]:
    """Minimises ½ w |render(θ) − target|², the target held fixed, one optimiser step at a time.

    `render(generator)` returns x of shape (batch, *event) or a `Rendered`. Squares are summed over an event and
    averaged over the batch. The run ends after `steps`, before the first level below `stop_level` (the paper's
    λ < λ_min), or after the first step whose mean shift |target − x| is below `tolerance`.

    Raises:
        ValueError: fewer than one step.
        FloatingPointError: x, target, loss or gradient is not finite; names the step. The parameters are untouched by it.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    return _run(render, optimizer, denoise, method, steps, stop_level, tolerance, generator)


def _run(render, optimizer, denoise, method, steps, stop_level, tolerance, generator) -> Iterator[StepInfo]:
    calls = 0
    after_step = getattr(method, "after_step", None)
    for step in range(steps):
        rendered = render(generator)
        if isinstance(rendered, Tensor):
            rendered = Rendered(rendered)
        x = rendered.x
        if x.ndim < 2 or len(x) == 0 or not x.requires_grad:
            said = f"{tuple(x.shape)}, {'with' if x.requires_grad else 'without'} a gradient"
            raise ValueError(f"render returned x of shape {said}; it must be (batch >= 1, *event) with a gradient")
        with torch.no_grad():
            own = denoise if rendered.denoise is None else rendered.denoise
            target = method(own, x.detach(), step / max(1, steps - 1), generator)
        if stop_level is not None and target.level < stop_level:
            return
        shift = (target.value - x.detach()).flatten(1).norm(dim=1)
        w = per_item(target.weight, x, "weight")
        gap = (x - target.value).to(torch.promote_types(x.dtype, torch.float32))  # a half could not hold the sum
        loss = (w * gap.square()).sum() / (2 * len(x)) + rendered.penalty
        where = f"({type(method).__name__}, level {target.level:g})"
        if not (shift.isfinite().all() and loss.isfinite()):
            raise FloatingPointError(f"step {step}: x, its target or the loss is not finite {where}")
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise FloatingPointError(f"step {step}: the gradient of render is not finite {where}")
        optimizer.step()
        if after_step is not None:
            after_step(x.detach(), generator)
        calls += target.calls
        info = StepInfo(step, loss.item(), target.level, shift.mean().item(), calls)
        yield info
        if tolerance is not None and info.shift_norm < tolerance:
            return
