"""An object from a prompt: a radiance field that any method moves, first through the encoder and then in pixels.

The defaults were found on "a red tree" and "a yellow bear", one seed each, with the pocket model's second edition.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..denoisers import Denoiser
from ..distill import Rendered, StepInfo, distill
from ..files import load
from ..latent.prior import DiffusionPrior
from ..measure.features import Clip
from ..pocket import WEIGHTS
from ..pocket.data import RESOLUTION
from ..pocket.evaluate import Figures
from ..pocket.judge import Judge
from ..pocket.objects import likeness, picture_figures, said_figures, true_scenes
from ..pocket.training import save_sheet
from ..pocket.world import BACKGROUNDS, KINDS, Prompt
from ..render import meshes
from ..render.cameras import VIEWS, Cameras, orbit
from ..render.fit import CLEAR, EVERY, adam, schedule
from ..render.nerf import Field, View, entropy, render
from ..schedules import Settings
from ..targets import Method, Target
from ..tensors import at_least_one, check_number
from . import run
from .text_to_2d import METHODS, STEPS_PER_TARGET, loaded, weights_of

BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {"steps": 20, "size": 16, "samples": 8, "finest": 16},
    "laptop": {"steps": 1500, "size": 32},
    "gpu": {"steps": 7000, "size": 64, "views": 4, "samples": 128, "finest": 128},
}
FORMATS = meshes.MESHES + meshes.MOVIES
AROUND, ELEVATION = 8, 15.0  # pictures of a sheet, and where their cameras stand
FRAMES = 48  # of a turntable
TYPICAL = 0.7  # radius of the ball that stands for an object when a run's time is foretold


@dataclass(frozen=True)
class TextTo3D:
    """One run: an object for a prompt, in JSON's types.

    Each of `steps` steps of Adam (a multiple of the method's `STEPS_PER_TARGET`) sees the field from `views` sides, with
    `samples` bins a ray, in pictures of `size` pixels a side (left out: the model's), which are then enlarged to the
    model's. The last `polish` share of the steps is in pixels, in full size, and there the entropy of a pixel's opacity
    weighs `entropy` beside its squared error. `finest` is the resolution of the field's finest level, `scale` is s of
    u + s (c − u). The generator of all chance is seeded by `seed`.

    Raises:
        ValueError: an argument out of its range, a prompt that names a view, a method without such a name.
    """

    prompt: str
    method: str = "sds-annealed"
    steps: int = 1500
    polish: float = 0.7
    views: int = 2
    scale: float = 4.0
    rate: float = 1e-2
    entropy: float = CLEAR
    size: int | None = None
    samples: int = 40
    finest: int = 64
    seed: int = 0
    model: str = "pocket"

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not self.prompt:
            raise ValueError(f"prompt is {self.prompt!r}; it must be a string, and not empty")
        if any(self.prompt.rstrip(". ").endswith(f"{view} view") for view in VIEWS):
            raise ValueError(f"prompt is {self.prompt!r}; leave out the view, each camera adds its own")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; it may be one of {', '.join(METHODS)}")
        for name in ("steps", "views", "samples", "finest"):
            at_least_one(name, getattr(self, name))
        if self.steps % (again := self.steps_per_target):
            raise ValueError(f"steps is {self.steps}; {self.method!r} takes {again} a target, so it must be a multiple")
        if self.size is not None:
            at_least_one("size", self.size)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number, at least 0")
        check_number("polish", self.polish, 0.0, 1.0)
        check_number("scale", self.scale)
        check_number("rate", self.rate, low=0.0)
        check_number("entropy", self.entropy, low=0.0)

    @property
    def steps_per_target(self) -> int:
        """Steps of Adam towards one target of this method."""
        return STEPS_PER_TARGET.get(self.method, 1)

    def carry_out(self, folder: str | os.PathLike[str], device: str | None = None) -> Field:
        """Distils the object in a folder, or goes on there; see `run.follow`. Pictures are views from all around."""
        work = _Work(self, device)
        own = {"steps per target": self.steps_per_target, "method settings": repr(work.method)}
        own["weights"] = weights_of(work.prior)
        run.follow(folder, asdict(self) | own, work.start, work.targets, work.parts(), work.draw)
        return work.field

    def forecast(self, device: str | None = None) -> Forecast:
        """What a run takes, from two steps of each phase that are taken and forgotten.

        The seconds are those of an object that fills a ball of radius .7. The memory is the highest so far, with a field
        that fills its cube: the GPU's, or else that of this process.
        """
        work = _Work(self, device)
        axis = torch.linspace(-1, 1, len(work.field.occupied))
        ball = torch.cartesian_prod(axis, axis, axis).norm(dim=1).view_as(work.field.occupied) < TYPICAL
        seconds = 0.0
        for pixels, targets in ((False, work.first), (True, work.targets - work.first)):
            if targets:
                work.field.occupied.fill_(True)
                next(work.distilled(pixels, None))
                work.field.occupied.copy_(ball)
                seconds += targets * next(work.distilled(pixels, None)).seconds
        return Forecast(seconds, _peak_memory(work.place))


class Forecast(NamedTuple):
    """Seconds and bytes; NaN bytes where the system does not say."""

    seconds: float
    memory: float

    def __str__(self) -> str:
        return f"about {self.seconds / 60:.1f} min and {self.memory / 2**30:.1f} GB"


def antithetic(count: int, generator: torch.Generator | None = None) -> Cameras:
    """`count` cameras, each drawn as those of the pocket model's training views, together spread evenly over these.

    Azimuths are 360/count apart, and so are, in their own range, elevations and the choice of views from above.
    """
    u = torch.rand(4, 1, generator=generator) + torch.arange(at_least_one("count", count)) / count
    return Prompt(next(iter(KINDS))).cameras_at(u % 1)


@dataclass(frozen=True, repr=False, eq=False)
class Decoded(Settings):
    """A method on latents as one on pictures x: it is asked about their latents, and its target is decoded."""

    method: Method
    prior: DiffusionPrior

    def __call__(self, denoise: Denoiser, x: Tensor, progress: float, generator: torch.Generator | None) -> Target:
        target = self.method(denoise, self.prior.encode(x), progress, generator)
        return target._replace(value=self.prior.decode(target.value))

    def after_step(self, denoise: Denoiser, x: Tensor, generator: torch.Generator | None) -> int:
        """Lets the method learn from the latents of x; gives the calls an item that this took."""
        learn = getattr(self.method, "after_step", None)
        return 0 if learn is None else learn(denoise, self.prior.encode(x), generator)


class _Work:
    """A run in memory: what moves, what moves it, and its steps."""

    def __init__(self, task: TextTo3D, device: str | None):
        self.task, self.prior = task, loaded(task.model, device)
        self.place = self.prior.start().device
        self.generator = torch.Generator().manual_seed(task.seed)
        self.field = Field(finest=task.finest, generator=self.generator).to(self.place)
        self.method = METHODS[task.method](self.prior, self.generator)
        self.optimizer = adam(self.field, task.rate)
        self.targets = task.steps // task.steps_per_target
        self.first = round((1 - task.polish) * self.targets)
        self.backgrounds = torch.tensor(list(BACKGROUNDS.values()), device=self.place)

    def parts(self) -> dict[str, Any]:
        """All that a run changes."""
        parts: dict[str, Any] = {"field": self.field, "optimizer": self.optimizer, "generator": self.generator}
        return parts | ({"method": self.method} if hasattr(self.method, "state_dict") else {})

    def start(self, done: StepInfo | None) -> Iterator[StepInfo]:
        """The steps after `done`: those in latents, then those in pixels, under one schedule."""
        taken = 0 if done is None else done.step + 1
        self._schedule(taken)
        if done is None:
            self.field.update_occupancy(self.generator)
        for pixels, end in ((False, self.first), (True, self.targets)):
            for info in islice(self.distilled(pixels, done), max(0, end - taken)):
                done, taken = info, info.step + 1
                self._schedule(taken)
                if taken % EVERY == 0:
                    self.field.update_occupancy(self.generator)
                yield info

    def distilled(self, pixels: bool, done: StepInfo | None) -> Iterator[StepInfo]:
        """All steps after `done`, towards targets in latents or in pixels."""
        task = self.task
        default = self.prior.denoiser(task.prompt, scale=task.scale)
        method = Decoded(self.method, self.prior) if pixels else self.method

        def render(generator: torch.Generator | None) -> Rendered:
            if not pixels:
                view, denoise = self._seen(task.size or self.prior.side, generator)
                return Rendered(self.prior.encode(self._enlarged(view.image)), denoise)
            view, denoise = self._seen(self.prior.side, generator)
            pixels_each = self.prior.side**2  # the loss is a sum over them, too
            return Rendered(view.image, denoise, task.entropy * pixels_each * entropy(view.opacity))

        return distill(
            render, self.optimizer, default, method, self.targets,
            generator=self.generator, steps_per_target=task.steps_per_target, done=done,
        )  # fmt: skip

    def _seen(self, size: int, generator: torch.Generator | None) -> tuple[View, Denoiser]:
        """Views of the field, of `size` pixels, before plain backgrounds; and the denoiser of their directions."""
        task = self.task
        cameras = antithetic(task.views, generator)
        behind = self.backgrounds[torch.randint(len(self.backgrounds), (task.views,), generator=generator)]
        view = render(self.field, cameras, behind, size, task.samples, generator)
        prompts = [f"{task.prompt}, {word} view" for word in cameras.view_words()]
        return view, self.prior.denoiser(prompts, scale=task.scale)

    def _enlarged(self, image: Tensor) -> Tensor:
        """Pictures of the model's size."""
        side = self.prior.side
        return image if image.shape[-1] == side else interpolate(image, (side, side), mode="bilinear", antialias=True)

    def _schedule(self, taken: int) -> None:
        schedule(self.field, self.optimizer, self.task.rate, taken / self.targets)

    def draw(self, path: Path) -> None:
        """Writes a sheet of views from all around."""
        save_sheet(views(self.field, orbit(AROUND, ELEVATION), self.prior.side), AROUND, path)


@torch.no_grad()
def views(field: Field, cameras: Cameras, size: int = 64, samples: int = 64) -> Tensor:
    """What cameras see of a field before grey, (n, 3, size, size) in [0, 1] on the CPU; one at a time, to save memory."""
    grey = BACKGROUNDS["grey"]
    return torch.cat([render(field, camera, grey, size, samples, jitter=False).image.cpu() for camera in cameras])


def field_of(folder: str | os.PathLike[str]) -> Field:
    """The field of a run's last checkpoint, on the CPU.

    Raises:
        ValueError: no run of text-to-3D in this folder, one without a checkpoint yet, or a damaged one.
    """
    settings, path = run.settings_of(folder), Path(folder) / run.CHECKPOINT
    if "finest" not in settings or not path.exists():
        wanted = f"that of a run of text-to-3d, with {run.CHECKPOINT}"
        raise ValueError(f"folder is {os.fspath(folder)!r}; it must be {wanted}")
    field = Field(finest=settings["finest"])
    field.load_state_dict(load(path)["parts"]["field"])
    return field


def export(folder: str | os.PathLike[str], ending: str = ".glb", resolution: int = 128, side: int = 128) -> Path:
    """Writes the object of a run beside it: its mesh as .glb, .ply or .obj, or a turntable as .webp, .mp4 or .gif.

    The mesh is cut from a grid of resolution³ points, a turntable has 48 pictures of `side` pixels.

    Raises:
        ValueError: another ending, a folder without such a run, an object without a surface.
        ImportError: the packages for meshes or films are not installed.
    """
    if ending not in FORMATS:
        raise ValueError(f"ending is {ending!r}; it may be one of {', '.join(FORMATS)}")
    field = field_of(folder)
    if ending in meshes.MOVIES:
        return meshes.turntable(views(field, orbit(FRAMES, ELEVATION), side), Path(folder) / f"turntable{ending}")
    mesh = meshes.surface(lambda p: field(p)[0], lambda p: field(p)[1], field.radius, resolution)
    return meshes.export(mesh, Path(folder) / f"object{ending}")


@torch.no_grad()
def figures(
    field: Field, prompt: str, prior: DiffusionPrior, proportions: int = 16, generator: torch.Generator | None = None
) -> Figures:
    """What an object is worth, from 24 sides: as `likeness`, `said_figures` and `picture_figures` of the pocket world say.

    Twelve cameras stand 10 degrees high, six 35 and six 75. A run of another model than the pocket model is measured by
    the pocket model's `prior`, too, if its prompt is of the pocket world.

    Raises:
        ValueError: a prompt that is not.
    """
    meant, judge = Prompt.parse(prompt), Judge.from_pretrained(WEIGHTS / "judge")
    cameras = Cameras(
        torch.cat([torch.arange(0, 360, 30), *[torch.arange(0, 360, 60)] * 2]),
        torch.tensor([10.0, 35.0, 75.0]).repeat_interleave(torch.tensor([12, 6, 6])),
    )
    seen = [render(field, camera, BACKGROUNDS["grey"], RESOLUTION, jitter=False) for camera in cameras]
    image, mask = torch.cat([v.image for v in seen]).cpu(), torch.cat([v.opacity for v in seen]).cpu()
    (near,) = likeness(image[None], mask[None], cameras, true_scenes(meant, proportions, generator=generator))
    return {
        **{"IoU": near.iou, "PSNR": near.psnr, "azimuth": near.azimuth},
        **said_figures(image, cameras, meant, judge, Clip.from_pretrained()),
        **picture_figures(image, mask, cameras, near, prior),
    }


def _peak_memory(place: torch.device) -> float:
    """The most bytes that the GPU has held for us, or else this process."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    try:
        import resource  # not on Windows
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
