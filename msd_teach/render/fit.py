"""How a radiance field is optimised, by whatever loss; and a field of an object whose pictures are given."""

from __future__ import annotations

import torch
from torch import Tensor

from ..tensors import at_least_one, check_number
from .cameras import Cameras
from .nerf import Field, entropy, march

EVERY = 10  # steps between two looks at what is empty
LAST_RATE = 0.1  # of the first
CLEAR = 0.01  # weight of the entropy of a pixel's opacity beside half its squared error
OPEN_BY = 0.3  # progress at which the finest level is in


def adam(field: Field, rate: float = 1e-2) -> torch.optim.Adam:
    """Adam for all parameters of a field at one rate, as in the paper, with the moments of Müller et al. 2022."""
    check_number("rate", rate, low=0.0)
    return torch.optim.Adam(field.parameters(), rate, betas=(0.9, 0.99))


def schedule(field: Field, optimizer: torch.optim.Optimizer, rate: float, progress: float) -> None:
    """What the progress through a run, 0 to 1, says: rate and open levels.

    The rate falls geometrically to a tenth, from the middle of the run on. The coarser half of the field's levels is
    open from the start, the finest by three tenths.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * LAST_RATE ** max(0.0, 2 * progress - 1)
    field.open_levels = len(field.encoding.levels) * min(1.0, (1 + progress / OPEN_BY) / 2)


def reconstruct(
    images: Tensor,
    cameras: Cameras,
    backgrounds: Tensor,
    steps: int = 1000,
    rays: int = 1024,
    rate: float = 1e-2,
    samples: int = 48,
    finest: int = 64,
    generator: torch.Generator | None = None,
) -> Field:
    """A field whose views are the given pictures: Adam on half the squared error of `rays` random pixels a step.

    `images` (N, 3, H, H) in [0, 1] are what N cameras see of an object before plain `backgrounds` (N, 3); of several
    colours, or haze of the one colour is never seen. The opacities' entropy is a small penalty.

    Raises:
        ValueError: other shapes, or numbers out of their range.
    """
    n, size = len(cameras), images.shape[-1]
    if images.shape != (n, 3, size, size) or backgrounds.shape != (n, 3):
        raise ValueError(
            f"images and backgrounds have shapes {tuple(images.shape)} and {tuple(backgrounds.shape)}; "
            f"they must be ({n}, 3, H, H) and ({n}, 3), one for each camera"
        )
    at_least_one("rays", rays)
    field = Field(finest=finest, generator=generator).to(images)
    optimizer = adam(field, rate)
    cameras, pixels = cameras.to(images.device), images.movedim(1, -1).flatten(0, 2)
    origins, directions = (v.to(images).flatten(0, 2) for v in cameras.rays(size, size))
    for step in range(at_least_one("steps", steps)):
        schedule(field, optimizer, rate, step / steps)
        if step % EVERY == 0:
            field.update_occupancy(generator)
        ray = torch.randint(len(pixels), (rays,), generator=generator).to(images.device)
        camera = ray // size**2
        distance = cameras.distance.to(images)[camera]
        seen = march(field, origins[ray], directions[ray], distance, backgrounds[camera], samples, generator)
        loss = (seen.image - pixels[ray]).square().sum() / (2 * rays) + CLEAR * entropy(seen.opacity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    field.update_occupancy(generator)
    return field
