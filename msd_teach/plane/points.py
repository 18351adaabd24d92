"""Points that are optimised themselves: distillation where θ is x."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..distill import StepInfo, distill
from ..targets import Method


def distill_points(
    x: Tensor,
    denoise: Denoiser,
    method: Method,
    steps: int,
    rate: float = 0.08,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, StepInfo]]:
    """Moves points x (n, *event) towards a method's targets by Adam at a `rate`: yields where each step leaves them.

    x itself stays. Rate .08 and 150 steps are the paper's in the plane. Errors as in `distill`.
    """
    x = x.detach().clone().requires_grad_()
    run = distill(lambda _: x, torch.optim.Adam([x], rate), denoise, method, steps, generator=generator)
    return ((x.detach().clone(), info) for info in run)
