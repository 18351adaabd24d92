"""Distillation: one loop that moves any differentiable `render` towards the targets of any method."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from .denoisers import Denoiser
from .targets import Method, Target
from .tensors import at_least_float32, at_least_one, check_number, per_item


class Rendered(NamedTuple):
    """What `render` may return besides x: the denoiser of this batch (its views, its prompts) and a penalty to add."""

    x: Tensor
    denoise: Denoiser | None = None
    penalty: float | Tensor = 0.0


class StepInfo(NamedTuple):
    """One step: its number, the loss (penalty included), the level σ or λ, the mean |target − x|, denoiser calls an item
    and seconds so far, and the penalty. Loss and penalty are those before its last optimiser step, |target − x| is that
    before its first.
    """

    step: int
    loss: float
    level: float
    shift_norm: float
    calls: int
    seconds: float = 0.0
    penalty: float = 0.0


def distill(
    render: Callable[[torch.Generator | None], Tensor | Rendered],
    optimizer: torch.optim.Optimizer,
    denoise: Denoiser,
    method: Method,
    steps: int,
    stop_level: float | None = None,
    tolerance: float | None = None,
    generator: torch.Generator | None = None,
    steps_per_target: int = 1,
    done: StepInfo | None = None,
) -> Iterator[StepInfo]:
    """Minimises ½ w |render(θ) − target|², the target held fixed, one target after another.

    `render(generator)` returns x of shape (batch, *event) or a `Rendered`. Squares are summed over an event and
    averaged over the batch. Each of `steps` targets is followed by `steps_per_target` optimiser steps, for which
    `render` is asked again with the random numbers of the first time, torch's own too: the same cameras, at the new θ.
    The run ends after `steps`, before the first level below `stop_level` (the paper's λ < λ_min), or after the first
    step whose mean shift |target − x| is below `tolerance`.

    The generator yields between steps. There belong learning-rate schedules, what a renderer changes during a run,
    trackers and checkpoints: θ, the states of optimizer and generator, and the last `StepInfo`. A run that is given
    these states and that record as `done` goes on after it, as if it had not been interrupted.

    Raises:
        ValueError: an argument that no run can use.
        FloatingPointError: x, target, loss or gradient is not finite, or what a method learns; names the step. In a
            step's first optimiser step the parameters are untouched by it.
    """
    at_least_one("steps", steps)
    at_least_one("steps_per_target", steps_per_target)
    for name, limit in (("stop_level", stop_level), ("tolerance", tolerance)):
        if limit is not None:
            check_number(name, limit, low=0.0)
    _check(render, optimizer, denoise, method, generator, done)

    def run() -> Iterator[StepInfo]:
        calls, seconds = (0, 0.0) if done is None else (done.calls, done.seconds)
        after_step = getattr(method, "after_step", None)
        for step in range(0 if done is None else done.step + 1, steps):
            began = time.perf_counter()
            streams = _streams(generator)
            before = [stream.get_state() for stream in streams]
            rendered = _rendered(render(generator))
            own = denoise if rendered.denoise is None else rendered.denoise
            here = at_least_float32(rendered.x.detach())
            with torch.no_grad():
                target = method(own, here, step / max(1, steps - 1), generator)
            target = _fixed(target, here, method)
            where = f"step {step} ({type(method).__name__}, level {target.level:g})"
            for name, value in (("x", here), ("the target", target.value), ("its weight", target.weight)):
                if not torch.as_tensor(value).isfinite().all():
                    raise FloatingPointError(f"{where}: {name} is not finite")
            if stop_level is not None and not target.level >= stop_level:
                if math.isnan(target.level):
                    raise ValueError(f"stop_level is {stop_level}, and {method!r} has no level; leave it out")
                return
            shift = (target.value - here).flatten(1).norm(dim=1)
            after = [stream.get_state() for stream in streams]
            loss = _optimise(rendered, optimizer, target, where)
            for again in range(2, steps_per_target + 1):
                _rewind(streams, before)
                rendered = _rendered(render(generator))
                if rendered.x.shape != target.value.shape:
                    said = f"{tuple(target.value.shape)} and then {tuple(rendered.x.shape)}"
                    raise ValueError(f"render returned x of shape {said}; it must keep its shape for one target")
                loss = _optimise(rendered, optimizer, target, f"{where}, optimiser step {again} of {steps_per_target}")
            _rewind(streams, after)
            calls += target.calls
            if after_step is not None:
                try:
                    spent = after_step(own, here, generator)
                except FloatingPointError as error:  # of a network that learns, which knows no step
                    raise FloatingPointError(f"{where}: {error}") from error
                calls += _count("calls of after_step", spent or 0)
            seconds += time.perf_counter() - began
            penalty = float(torch.as_tensor(rendered.penalty).detach())
            info = StepInfo(step, loss, target.level, shift.mean().item(), calls, seconds, penalty)
            yield info
            if tolerance is not None and info.shift_norm < tolerance:
                return

    ended = done is not None and tolerance is not None and done.shift_norm < tolerance
    return iter(()) if ended else run()


def _optimise(rendered: Rendered, optimizer: torch.optim.Optimizer, target: Target, where: str) -> float:
    """One optimiser step towards the target, and the loss before it."""
    x = at_least_float32(rendered.x)  # a half could not hold the sum
    w = per_item(target.weight, x, "weight")
    loss = (w * (x - target.value).square()).sum() / (2 * len(x)) + rendered.penalty
    if not loss.isfinite():
        raise FloatingPointError(f"{where}: the loss is not finite")
    optimizer.zero_grad()
    loss.backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        raise ValueError("optimizer has no parameter that render depends on; give it those of render")
    if not torch.nn.utils.get_total_norm(gradients, math.inf).isfinite():
        raise FloatingPointError(f"{where}: the gradient of render is not finite")
    optimizer.step()
    return loss.item()


def _streams(generator: torch.Generator | None) -> list[torch.Generator]:
    """All that a render may draw from: the given generator, and torch's own (a dropout layer takes no other)."""
    own = [torch.default_generator, *torch.cuda.default_generators]
    return own if generator is None else [generator, *own]


def _rewind(streams: list[torch.Generator], states: list[Tensor]) -> None:
    for stream, state in zip(streams, states, strict=True):
        stream.set_state(state)


def _rendered(answer: object) -> Rendered:
    rendered = Rendered(answer) if isinstance(answer, Tensor) else answer
    if not isinstance(rendered, Rendered) or not isinstance(rendered.x, Tensor):
        raise ValueError(f"render returned a {type(answer).__name__}; it must be a tensor x or Rendered(x, …)")
    x = rendered.x
    if x.ndim < 2 or not x.numel() or not x.is_floating_point() or not x.requires_grad:
        said = f"{tuple(x.shape)}, {x.dtype}, {'with' if x.requires_grad else 'without'} a gradient"
        raise ValueError(
            f"render returned x of shape {said}; it must be (batch >= 1, *event), of floats, with a gradient"
        )
    if rendered.denoise is not None and not callable(rendered.denoise):
        raise ValueError(f"render returned denoise {rendered.denoise!r}; it must be a function denoise(z, sigma)")
    penalty = rendered.penalty
    single = isinstance(penalty, Tensor) and penalty.numel() == 1 and not penalty.is_complex()
    if not single and not isinstance(penalty, Real):
        said = f"of shape {tuple(penalty.shape)}" if isinstance(penalty, Tensor) else repr(penalty)
        raise ValueError(f"render returned a penalty {said}; it must be one real number")
    return rendered


def _check(render: object, optimizer: object, denoise: object, method: object, generator: object, done: object) -> None:
    if not callable(render):
        raise ValueError(f"render is a {type(render).__name__}; it must be a function render(generator)")
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator is {generator!r}; it must be a torch.Generator or None")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer is {optimizer!r}; it must be one of torch.optim's, with the parameters of render")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer is {type(optimizer).__name__}, which asks for the loss several times a step; choose another"
        )
    if not callable(denoise):
        hint = "; give its .denoise" if callable(getattr(denoise, "denoise", None)) else ""
        raise ValueError(f"denoise is {denoise!r}; it must be a function denoise(z, sigma){hint}")
    if isinstance(method, type) or not callable(method):
        raise ValueError(
            f"method is {method!r}; it must be called with settings first, such as MeanShift(linear(1, .1))"
        )
    if not isinstance(done, StepInfo | None):
        raise ValueError(f"done is {done!r}; it must be the last StepInfo of an interrupted run")
    if done is not None:
        _count("done.step", done.step)
        _count("done.calls", done.calls)


def _fixed(target: object, x: Tensor, method: object) -> Target:
    """The target, held fixed: what a method answers may hang on parameters of its own."""
    value = target.value if isinstance(target, Target) else None
    if not isinstance(target, Target) or not isinstance(value, Tensor) or value.shape != x.shape or value.is_complex():
        said = f"a value of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"{target!r}"
        raise ValueError(
            f"method {method!r} gave {said}; it must give a Target whose value is like x, {tuple(x.shape)}"
        )
    for name, number in (("weight", target.weight), ("level", target.level)):
        if not isinstance(number, Real | Tensor):
            raise ValueError(f"method {method!r} gave a target of {name} {number!r}; it must be a number")
    calls, level = _count("calls of the target", target.calls), float(target.level)
    return target._replace(value=value.detach(), calls=calls, level=level)


def _count(name: str, calls: object) -> int:
    if not isinstance(calls, Integral) or isinstance(calls, bool) or calls < 0:
        raise ValueError(f"{name} is {calls!r}; it must be a whole number, at least 0")
    return int(calls)
