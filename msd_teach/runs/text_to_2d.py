"""Images from prompts: what a run of text-to-2D is, and every method under its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..distill import Rendered, StepInfo, distill
from ..latent.lora import LoRA
from ..latent.prior import DiffusionPrior
from ..pocket import WEIGHTS, version
from ..pocket.training import save_sheet
from ..render.images import FourierImage, GridImage, Latents, Pixels
from ..schedules import above, annealed, geometric, linear, sigmas_around, uniform_time, unit_weight
from ..targets import ISM, MSD, PFD, SDI, SDS, VSD, MeanShift, Method
from ..tensors import at_least_one, check_number
from . import run

BATCH = 10  # prompts of a sweep that share a run
SEEDS = 1000  # of a sweep, at most
FALLING = geometric(6.0, 0.1)  # of λ, in standard deviations of a latent
METHODS: dict[str, Callable[[DiffusionPrior, torch.Generator], Method]] = {
    "sds": lambda prior, generator: SDS(uniform_time(level=prior.level)),
    "sds-annealed": lambda prior, generator: SDS(annealed(FALLING), unit_weight),
    "sdi": lambda prior, generator: SDI(-7.5, linear(0.98, 0.02), level=prior.level),
    "sdi-3d": lambda prior, generator: SDI(-7.5, level=prior.level),
    "ism": lambda prior, generator: ISM(0.0, level=prior.level),
    "vsd": lambda prior, generator: VSD(LoRA(prior, generator=generator), uniform_time(level=prior.level)),
    "pfd": lambda prior, generator: PFD(-6.5, level=prior.level),
    "mean-shift": lambda prior, generator: MeanShift(FALLING),
    "noisy-then-clean": lambda prior, generator: MeanShift(FALLING, above(2.0)),
    "msd": lambda prior, generator: MSD("exact", FALLING, sigmas_around()),
    "msd-paper": lambda prior, generator: MSD("exponential", FALLING, prior.sigmas(25), solver="euler", inversion=1.0),
}
STEPS_PER_TARGET = {"sdi": 25}  # elsewhere 1
GENERATORS = {"grid": GridImage, "fourier": FourierImage, "pixels": Pixels, "latents": Latents}
RATES = {"grid": 1e-2, "fourier": 1e-3, "pixels": 5e-2, "latents": 1e-2}  # of Adam


@dataclass(frozen=True)
class TextTo2D:
    """One run: an image for each prompt, all moved by one method, in JSON's types.

    `image` says what the parameters are, `steps` counts steps of Adam (a multiple of the method's `STEPS_PER_TARGET`),
    `scale` is s of u + s (c − u), `rate` that of Adam (left out: `RATES`). The generator of all chance is seeded by `seed`.

    Raises:
        ValueError: an argument out of its range, a method or image without such a name.
    """

    prompts: tuple[str, ...]
    method: str = "sds-annealed"
    steps: int = 400
    scale: float = 7.5
    image: str = "grid"
    rate: float | None = None
    seed: int = 0
    model: str = "pocket"

    def __post_init__(self):
        if isinstance(self.prompts, str) or not self.prompts:
            raise ValueError(f"prompts is {self.prompts!r}; it must be one or more strings, in a tuple")
        for name, known in (("method", METHODS), ("image", GENERATORS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it may be one of {', '.join(known)}")
        again = STEPS_PER_TARGET.get(self.method, 1)
        if at_least_one("steps", self.steps) % again:
            raise ValueError(f"steps is {self.steps}; {self.method!r} takes {again} a target, so it must be a multiple")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number, at least 0")
        check_number("scale", self.scale)
        if self.rate is not None:
            check_number("rate", self.rate, low=0.0)

    def carry_out(self, folder: str | os.PathLike[str], device: str | None = None) -> Tensor:
        """Distils the images (prompts, 3, H, W) in [0, 1] in a folder, or goes on there; see `run.follow`."""
        prior = loaded(self.model, device)
        generator = torch.Generator().manual_seed(self.seed)
        image = self._image(prior, generator)
        method = METHODS[self.method](prior, generator)
        denoise = prior.denoiser(self.prompts, scale=self.scale)
        rate = RATES[self.image] if self.rate is None else self.rate
        optimizer = torch.optim.Adam(image.parameters(), rate)
        again = STEPS_PER_TARGET.get(self.method, 1)
        targets = self.steps // again

        def render(generator: torch.Generator | None) -> Rendered:
            x = image(generator)
            return Rendered(x if self.image == "latents" else prior.encode(x))

        def start(done: StepInfo | None):
            return distill(render, optimizer, denoise, method, targets, None, None, generator, again, done)

        @torch.no_grad()
        def pictures() -> Tensor:
            x = image()
            return prior.decode(x) if self.image == "latents" else x

        def draw(path: Path) -> None:
            save_sheet(pictures(), min(len(self.prompts), run.COLUMNS), path)

        parts = {"image": image, "optimizer": optimizer, "generator": generator}
        if hasattr(method, "state_dict"):
            parts["method"] = method
        own = {"rate": rate, "steps per target": again, "method settings": repr(method), "weights": weights_of(prior)}
        run.follow(folder, asdict(self) | own, start, targets, parts, draw)
        return pictures()

    def _image(self, prior: DiffusionPrior, generator: torch.Generator) -> nn.Module:
        batch, place = len(self.prompts), prior.start().device
        if self.image == "latents":
            return Latents(prior.shape, batch, generator=generator).to(place)
        return GENERATORS[self.image](prior.side, batch, generator=generator).to(place)


def weights_of(prior: DiffusionPrior) -> str:
    """What a model's name stands for: that of the shipped one for one version, "stable-diffusion" for what was found."""
    return version() if Path(prior.name) == WEIGHTS else prior.name


@cache
def loaded(model: str, device: str | None) -> DiffusionPrior:
    """A model, once for all runs of a process."""
    return DiffusionPrior.from_pretrained(model, device=device)


def sweep(
    prompts: Sequence[str], methods: Sequence[str], seeds: int, batch: int = BATCH, **settings: Any
) -> dict[str, TextTo2D]:
    """The runs of every method on all prompts, `batch` of them at a time, with each seed, under the names of their folders.

    `settings` are those of `TextTo2D`. Runs with the same number in their name have the same prompts and the same seed.

    Raises:
        ValueError: no prompts or no methods, seeds or batch that are not 1, 2, …, more seeds than `SEEDS`, what
            `TextTo2D` refuses.
    """
    if at_least_one("seeds", seeds) > SEEDS:
        raise ValueError(f"seeds is {seeds}; it may be {SEEDS} at most, or they would be those of the next prompts")
    at_least_one("batch", batch)
    parts = [tuple(prompts[i : i + batch]) for i in range(0, len(prompts), batch)]
    if isinstance(prompts, str) or not parts or not methods:
        raise ValueError(f"prompts, methods are {prompts!r}, {methods!r}; each must be a list of one or more")
    return {
        f"{method}-{SEEDS * part + seed:06d}": TextTo2D(said, method, seed=SEEDS * part + seed, **settings)
        for seed in range(seeds)
        for part, said in enumerate(parts)
        for method in methods
    }


def carry_out(
    runs: Mapping[str, TextTo2D],
    folder: str | os.PathLike[str],
    share: tuple[int, int] = (0, 1),
    device: str | None = None,
) -> None:
    """Carries out every world-th run of a sweep from `rank` on, each in a folder of its own; `share` is (rank, world).

    A run that meets NaN is named at the end, after all others: it takes no other with it.

    Raises:
        ValueError: not 0 <= rank < world; what a run refuses.
        FloatingPointError: names the runs that met NaN.
    """
    rank, world = share
    if not 0 <= rank < world:
        raise ValueError(f"share is {share}; it must be (rank, world) with 0 <= rank < world")
    lost: list[str] = []
    for name in list(runs)[rank::world]:
        try:
            runs[name].carry_out(Path(folder) / name, device)
        except FloatingPointError as error:
            lost.append(f"{name} ({error})")
    if lost:
        raise FloatingPointError(f"{len(lost)} runs stopped: {'; '.join(lost)}")


def place(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, world) as `accelerate launch`, `torchrun` and Slurm arrays put them into the environment; alone: (0, 1)."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, stride = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", "1")) for name in ("MIN", "STEP"))
        return (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // stride, int(environment["SLURM_ARRAY_TASK_COUNT"])
    return int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))


def device_of(environment: Mapping[str, str]) -> str | None:
    """The GPU of a process, where `accelerate launch` or `torchrun` started several on one machine."""
    if "LOCAL_RANK" not in environment or not torch.cuda.is_available():
        return None
    return f"cuda:{int(environment['LOCAL_RANK']) % torch.cuda.device_count()}"
