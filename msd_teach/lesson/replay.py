"""Recorded optimisations to scrub through in the page, two methods side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..plane.mixture import GaussianMixture
from .canvases import entropy, extent
from .web import Page, assemble

GRID = 65535  # a position is a share of its picture's side in 16 bits


def replay_canvas(
    runs: Mapping[tuple[str, str], Tensor],
    densities: Mapping[str, GaussianMixture],
    steps: Sequence[int],
    levels: Mapping[str, Sequence[str]] | None = None,
    default: tuple[str, str, str] | None = None,
) -> Page:
    """Recorded optimisations to scrub through: two methods side by side at one step, over one density.

    `runs` maps every (density, method) to its states (frames, points, 2), in the plane; `steps` numbers the frames.
    `levels` gives a method a note for each frame, such as "λ = 0.22". The canvas opens at the last frame of `default`:
    a density, a left and a right method (the first ones otherwise). The mean −log p is of the states as given, in nats;
    points that stray far from density and starts wait at the edge of the picture.

    Raises:
        ValueError: a density and a method without a run, states that are not finite or differ in shape, a level
            without its note, a default that is none of them.
    """
    names, methods = list(densities), list(dict.fromkeys(method for _, method in runs))
    levels = dict.fromkeys(methods, [""] * len(steps)) | dict(levels or {})
    if not runs or set(runs) != {(name, method) for name in names for method in methods}:
        raise ValueError(f"runs has {sorted(runs)}; it must have every method on each of the densities {names}")
    shape = (len(steps), *next(iter(runs.values())).shape[1:2], 2)
    for pair, states in runs.items():
        if states.shape != shape or not states.isfinite().all():
            raise ValueError(f"runs[{pair}] has shape {tuple(states.shape)}; it must be {shape}, and finite")
    for method, notes in levels.items():
        if method not in methods or len(notes) != len(steps):
            raise ValueError(f"levels[{method!r}] has {len(notes)} notes; it takes {len(steps)}, for one of {methods}")
    density, *pair = default or (names[0], methods[0], methods[-1])
    if density not in names or len(pair) != 2 or not set(pair) <= set(methods):
        raise ValueError(f"default is {default}; it must be one of {names}, then two of {methods}")

    shown, packed = [], []
    for name, mixture in densities.items():
        states = torch.stack([runs[name, method].detach().cpu().double() for method in methods])
        losses = -mixture.log_prob(states).mean(-1)
        left, bottom, side = box = _box(mixture, states[:, 0])
        packed.append(((states - torch.tensor([left, bottom])) / side).clamp(0, 1).mul(GRID).round())
        picture = base64.b64encode(_ink(mixture, box)).decode()
        losses = [[round(loss, 2) for loss in run] for run in losses.tolist()]
        shown.append(
            {"name": name, "entropy": round(entropy(mixture), 2), "box": box, "losses": losses, "ink": picture}
        )
    places = torch.stack(packed).int().numpy().astype("<u2").tobytes()
    ends = shown[names.index(density)]["losses"]
    last = [f"{method}: {run[-1]:.2f} nats".replace("-", "−") for method, run in zip(methods, ends, strict=True)]
    alt = (
        f"{shape[1]} points on the density {density} after {steps[-1]} steps of each method, with their mean −log p. "
        f"{', '.join(last)}. Choose two methods and drag the step."
    )
    data = {
        "densities": shown,
        "methods": [{"name": method, "levels": list(levels[method])} for method in methods],
        "steps": [int(step) for step in steps],
        "points": shape[1],
        "places": base64.b64encode(places).decode(),
        "chosen": [names.index(density), *map(methods.index, pair)],
        "label": alt,
    }
    finals = [runs[density, method][-1] for method in methods]
    picture = _picture(densities[density], shown[names.index(density)]["box"], finals, last)
    return Page(assemble("replay", data), picture, alt)


def _box(mixture: GaussianMixture, starts: Tensor) -> tuple[float, float, float]:
    """left, bottom and side of a square around a mixture and the starts (…, 2), with room for a dot."""
    left, right, bottom, top = extent(mixture)
    ends = torch.tensor([[left, bottom], [right, top]]).double()
    low, high = torch.cat([ends, starts.flatten(0, -2)]).aminmax(dim=0)
    side = 1.04 * (high - low).max()
    left, bottom = ((low + high - side) / 2).tolist()
    return round(left, 4), round(bottom, 4), round(float(side), 4)


def _ink(mixture: GaussianMixture, box: Sequence[float], pixels: int = 200) -> bytes:
    """√p as the opacity of one tone, which reads on light and dark pages; 32 levels keep the PNG small."""
    left, bottom, side = box
    axis = side * (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels
    grid = torch.stack(torch.meshgrid(left + axis, bottom + axis.flip(0), indexing="xy"), -1)
    level = (mixture.log_prob(grid, side / pixels / 2) / 2).exp()
    alpha = (level / level.quantile(0.998)).clamp(max=1).mul(31).round().mul(8).byte().numpy()
    image = Image.merge("LA", [Image.new("L", (pixels, pixels), 128), Image.fromarray(alpha)])
    image.save(buffer := io.BytesIO(), "PNG", optimize=True)
    return buffer.getvalue()


def _picture(mixture: GaussianMixture, box: Sequence[float], ends: Sequence[Tensor], titles: Sequence[str]) -> bytes:
    """Where the points of every method ended, over the density, as a PNG."""
    from . import figures

    left, bottom, side = box
    fig, axes = figures.planes([title.replace(": ", "\n") for title in titles], rows=-(-len(titles) // 4))
    for ax, x in zip(axes, ends, strict=True):
        ax.set(xlim=(left, left + side), ylim=(bottom, bottom + side))
        figures.density(ax, mixture, side / 400)
        figures.points(ax, x, figures.RED, size=7, edgecolors="white", linewidths=0.3, alpha=1)
    return figures.png(fig)
