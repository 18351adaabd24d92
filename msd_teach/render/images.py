"""Generators of images: parameters θ, and a call that renders B independent images (a prompt each) in [0, 1].

All are called as `distill` calls them, render(generator). None of them draws: the same θ gives the same image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..tensors import at_least_one, check_number, noise_like
from .encodings import MLP, FourierFeatures, GridEncoding

LITTLE = 0.1  # standard deviation of what plain parameters start with


class _CoordinateImage(nn.Module):
    """An encoding of pixel centres, B small networks, and a sigmoid."""

    points: Tensor

    def __init__(
        self,
        encoding: GridEncoding | FourierFeatures,
        size: int,
        batch: int,
        width: int,
        generator: torch.Generator | None,
    ):
        super().__init__()
        self.size = size
        self.encoding = encoding
        self.network = MLP(encoding.outputs, 3, width, batch=batch, generator=generator)
        self.register_buffer("points", pixel_centres(size).flatten(0, 1), persistent=False)

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        colours = self.network(self.encoding(self.points)).sigmoid()  # (B, size², 3)
        return colours.mT.unflatten(2, (self.size, self.size))


class GridImage(_CoordinateImage):
    """Images (B, 3, size, size) in [0, 1] of a coordinate network on a multiresolution grid; the default of text-to-2D.

    A `GridEncoding` whose resolutions double from `coarsest` to about `finest` (that of the image, if not given), then
    an `MLP` with two hidden layers of `width` and a sigmoid. Starts as mid grey, to within .001.

    Raises:
        ValueError: an argument that is no whole number, or out of its range.
    """

    def __init__(
        self,
        size: int = 64,
        batch: int = 1,
        coarsest: int = 4,
        finest: int | None = None,
        width: int = 64,
        generator: torch.Generator | None = None,
    ):
        finest = at_least_one("size", size) if finest is None else at_least_one("finest", finest)
        doublings = max(1, round(math.log2(finest / at_least_one("coarsest", coarsest))))
        encoding = GridEncoding(2, coarsest, finest, 1 + doublings, batch=batch, generator=generator)
        super().__init__(encoding, size, batch, width, generator)


class FourierImage(_CoordinateImage):
    """Images (B, 3, size, size) in [0, 1] of a coordinate network on random Fourier features (Tancik et al. 2020).

    The frequencies, of standard deviation `spread` in cycles a side (a sixteenth of `size`, if not given), are shared
    by the batch; the networks are as in `GridImage`. Starts as grey with a faint pattern.

    Raises:
        ValueError: an argument that is no number, or out of its range.
    """

    def __init__(
        self,
        size: int = 64,
        batch: int = 1,
        spread: float | None = None,
        width: int = 64,
        generator: torch.Generator | None = None,
    ):
        spread = at_least_one("size", size) / 16 if spread is None else spread
        super().__init__(FourierFeatures(2, spread, generator=generator), size, batch, width, generator)


class Pixels(nn.Module):
    """Images (B, 3, size, size) in [0, 1] whose parameters are the pixels, before a sigmoid. Starts as grey with noise.

    Raises:
        ValueError: size or batch is no whole number, at least 1.
    """

    def __init__(self, size: int = 64, batch: int = 1, generator: torch.Generator | None = None):
        super().__init__()
        size = at_least_one("size", size)
        empty = torch.empty(at_least_one("batch", batch), 3, size, size)
        self.logits = nn.Parameter(LITTLE * noise_like(empty, generator))

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        return self.logits.sigmoid()


class Latents(nn.Module):
    """Latents (B, C, h, w) that are their own parameters, not squashed; they need no encoder.

    `shape` is (C, h, w), such as that of a `DiffusionPrior`. Starts as noise of standard deviation `spread`.

    Raises:
        ValueError: shape is not three whole numbers, batch no whole number, spread negative.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        batch: int = 1,
        spread: float = LITTLE,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not isinstance(shape, tuple | list | torch.Size) or len(shape) != 3:
            raise ValueError(f"shape is {shape!r}; it must be (channels, height, width)")
        check_number("spread", spread, low=0.0)
        empty = torch.empty(at_least_one("batch", batch), *(at_least_one("shape", n) for n in shape))
        self.values = nn.Parameter(spread * noise_like(empty, generator))

    def forward(self, generator: torch.Generator | None = None) -> Tensor:
        return self.values.clone()  # an optimiser step writes into θ, and what was rendered must not follow


def pixel_centres(size: int) -> Tensor:
    """The points (column, row) of the unit square at the middle of each pixel, (size, size, 2); row 0 is the top.

    Raises:
        ValueError: size is no whole number, at least 1.
    """
    middle = (torch.arange(at_least_one("size", size)) + 0.5) / size
    return torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1)
