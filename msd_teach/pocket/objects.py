"""How near an object comes to what its prompt means: to the nearest of many true scenes, to the judge and to CLIP.

A prompt stands for a distribution of scenes, so likeness is the best over proportions, sizes and azimuths of true ones.
The floor is what objects of other kinds reach in the same way. A ceiling is a true scene that is not among those
compared with (another seed), made by whatever makes the object, say a radiance field fitted to its pictures.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..latent.prior import DiffusionPrior
from ..measure.features import Clip
from ..measure.images import r_precision, sharpness, signal_to_noise
from ..measure.shapes import chamfer_distance, janus_rate, silhouette_iou
from ..render.cameras import Cameras
from ..render.meshes import level_set
from ..tensors import at_least_one
from .evaluate import Figures, agreement, with_errors
from .judge import Judge
from .scene import REACH
from .world import COLOURS, FULL_SIZES, KINDS, SMALL_SIZES, Prompt, Scene, render

if TYPE_CHECKING:
    from trimesh import Trimesh

INSIDE = 0.99  # of a pixel that counts as covered
SIZES = 4  # of each true scene, evenly over those that the prompt may mean


class Likeness(NamedTuple):
    """The best silhouette IoU and the best PSNR in dB, and the scene and azimuth of the latter: where the front is."""

    iou: float
    psnr: float
    scene: Scene
    azimuth: float


def true_scenes(
    prompt: Prompt, proportions: int = 16, background: str = "grey", generator: torch.Generator | None = None
) -> list[Scene]:
    """4 `proportions` scenes that a prompt may mean, before one background: its mode and draws, each in four sizes.

    Raises:
        ValueError: fewer than one, or an unknown background.
    """
    drawn = [prompt.mode(), *(prompt.scene(generator) for _ in range(at_least_one("proportions", proportions) - 1))]
    low, high = SMALL_SIZES if prompt.small else FULL_SIZES
    sizes = [low + (high - low) * (i + 0.5) / SIZES for i in range(SIZES)]
    return [replace(scene, size=size, background=background) for scene in drawn for size in sizes]


def likeness(image: Tensor, mask: Tensor, cameras: Cameras, scenes: list[Scene], turns: int = 24) -> list[Likeness]:
    """How much M objects look like the nearest of true scenes, each figure at its own best scene and azimuth.

    `image` (M, V, 3, H, H) in [0, 1] and `mask` (M, V, H, H) are what V cameras see of each object, before the scenes'
    background. Every scene is turned to `turns` azimuths, evenly; the IoU is the mean over views, the PSNR over all
    pixels. Cameras on rings whose spacing is a multiple of 360 / turns cost fewest renders: a scene is then seen from
    `turns` places a ring, in about 20 ms each at H = 64 on one core.

    Raises:
        ValueError: other shapes, no scenes, or fewer than one turn.
    """
    turn = torch.arange(at_least_one("turns", turns)) * (360 / turns)
    size = image.shape[-1]
    if image.shape[1:] != (len(cameras), 3, size, size) or mask.shape != (len(image), len(cameras), size, size):
        raise ValueError(
            f"image and mask have shapes {tuple(image.shape)} and {tuple(mask.shape)}; "
            f"they must be (M, {len(cameras)}, 3, H, H) and (M, {len(cameras)}, H, H), a view for each camera"
        )
    if not scenes:
        raise ValueError("scenes is empty; it must hold one at least")
    # a camera at a sees of an object turned by t what one at a - t sees of it unturned; many of these views are the same
    azimuth = ((cameras.azimuth.cpu() - turn[:, None]) % 360).round(decimals=3) % 360
    rest = [v.cpu().expand_as(azimuth) for v in (cameras.elevation, cameras.distance, cameras.field_of_view)]
    distinct, index = torch.stack([azimuth, *rest], -1).flatten(0, 1).unique(dim=0, return_inverse=True)
    index, around = index.reshape(azimuth.shape), Cameras(*distinct.T).to(image.device)
    overlap, error = [], []
    for scene in scenes:
        truth = render([scene] * len(around), around, size)
        overlap.append(torch.stack([silhouette_iou(m, truth.mask[index]).mean(1) for m in mask]))
        error.append(torch.stack([(x - truth.image[index]).square().mean((1, 2, 3, 4)) for x in image]))
    iou = torch.stack(overlap, 1).flatten(1).amax(1).tolist()  # (M, scenes x turns), as the error
    least, where = torch.stack(error, 1).flatten(1).min(1)
    return [
        Likeness(i, -10 * math.log10(e) if e > 0 else math.inf, scenes[k // turns], turn[k % turns].item())
        for i, e, k in zip(iou, least.tolist(), where.tolist(), strict=True)
    ]


def shape_figures(image: Tensor, mask: Tensor, cameras: Cameras, scenes: list[Scene], turns: int = 24) -> Figures:
    """IoU and PSNR of an object's views, (V, 3, H, H) and (V, H, H), as `likeness` has them, and their floors.

    A floor is the highest that the modes of all other kinds reach, in the colour and size of the first of the scenes.

    Raises:
        ValueError: as `likeness`.
    """
    wrong = [replace(scenes[0], kind=kind, shape=(0.0, 0.0, 0.0, 0.0)) for kind in KINDS if kind != scenes[0].kind]
    each = cameras[torch.arange(len(cameras)).repeat(len(wrong))]
    others = render([scene for scene in wrong for _ in cameras], each, image.shape[-1])
    found, *floor = likeness(
        torch.cat([image[None], others.image.unflatten(0, (len(wrong), -1)).to(image)]),
        torch.cat([mask[None], others.mask.unflatten(0, (len(wrong), -1)).to(mask)]),
        cameras, scenes, turns,
    )  # fmt: skip
    return {
        "IoU": found.iou,
        "PSNR": found.psnr,
        "azimuth": found.azimuth,
        "floor IoU": max(other.iou for other in floor),
        "floor PSNR": max(other.psnr for other in floor),
    }


def picture_figures(image: Tensor, mask: Tensor, cameras: Cameras, nearest: Likeness, prior: DiffusionPrior) -> Figures:
    """Whether an object's views (V, 3, H, H) are clean and sharp, beside those of the scene that they were nearest to.

    "round trip" is the PSNR in dB of the views after the autoencoder, which speckle lowers and blur raises; "detail" is
    the root mean square of their Laplacian over the truth's, within both silhouettes, which blur lowers and speckle
    raises (NaN where nothing is covered by both, as in a cloud). "true round trip" is the truth's own.
    """
    truth = render([nearest.scene] * len(cameras), turned(cameras, -nearest.azimuth), image.shape[-1])
    with torch.no_grad():
        trips = [signal_to_noise(2 * x - 1, 2 * prior.decode(prior.encode(x)) - 1) for x in (image, truth.image)]
    both = (torch.minimum(mask, truth.mask) > INSIDE).to(image)
    inner = -max_pool2d(-both, 5, stride=1, padding=2)  # the Laplacian of an outline is no detail
    share = sharpness(2 * truth.image - 1, 2 * image - 1, inner)[0] if inner.any() else math.nan
    return {"round trip": trips[0], "true round trip": trips[1], "detail": math.sqrt(share)}


def turned(cameras: Cameras, angle: float) -> Cameras:
    """The same cameras, moved around by an angle in degrees."""
    return Cameras(cameras.azimuth + angle, cameras.elevation, cameras.distance, cameras.field_of_view)


def surface_distance(
    mesh: Trimesh, nearest: Likeness, resolution: int = 128, generator: torch.Generator | None = None
) -> float:
    """The Chamfer distance of a mesh from the surface of the scene that it was found to be nearest to, turned alike."""
    from trimesh.transformations import rotation_matrix

    scene = nearest.scene
    truth = level_set(lambda p: -scene.distance(p), REACH * scene.size, resolution)
    truth.apply_transform(rotation_matrix(math.radians(nearest.azimuth), [0.0, 1.0, 0.0]))
    return chamfer_distance(mesh, truth, generator=generator)


def said_figures(image: Tensor, cameras: Cameras, prompt: Prompt, judge: Judge, clip: Clip) -> Figures:
    """What is seen in an object's views (V, 3, 64, 64) in [0, 1]: by the judge and by CLIP, with errors or intervals.

    The judge's shares of right kinds, colours (where the prompt names one) and views, the Janus rate, and the share of
    front views that are judged to be such, "front" (NaN without any): an object without a face is no Janus either. CLIP's
    R-precision, over the captions of all kinds (and colours), without a view. Views of one object are not independent:
    the errors are those of more views, not of more objects.
    """
    x = 2 * image - 1
    found, view = judge.decide(x).cpu(), cameras.view().cpu()
    colours: list[str | None] = [*COLOURS] if prompt.colour else [None]
    choices = [(kind, colour) for kind in KINDS for colour in colours]
    own = choices.index((prompt.kind, prompt.colour))
    truth = torch.tensor([list(KINDS).index(prompt.kind), colours.index(prompt.colour)]).expand(len(x), 2)
    right = agreement(found, torch.cat([truth, view[:, None]], 1), cameras.border_distance().cpu())
    janus = janus_rate(found[:, 2], view)
    front = (found[:, 2] == 0)[view == 0].double().mean().item()
    captions = [str(Prompt(kind, colour, small=prompt.small)) for kind, colour in choices]
    retrieved = r_precision(clip.pictures(x), clip.captions(captions), torch.full((len(x),), own))
    return {
        **{name: value for name, value in right.items() if prompt.colour or not name.startswith("colour")},
        **{"Janus rate": janus.value, "Janus low": janus.low, "Janus high": janus.high, "front": front},
        **with_errors({"R-precision": retrieved}),
        "captions": len(captions),
    }
