"""The pocket world in words: a prompt is a distribution over scenes and cameras, with a mode.

The grammar, where brackets mark what may be left out:

    [a photo of] a|an [small] [COLOUR] KIND [, front|side|back|overhead view]

A prompt that names no colour or no view leaves it to chance; one without "small" means an object of full size.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..render.cameras import BACK_BORDER, FRONT_BORDER, VIEWS, Cameras
from .kinds import KINDS
from .scene import BACKGROUNDS, COLOURS, Render, Scene, render

__all__ = [
    "BACKGROUNDS", "COLOURS", "KINDS", "VIEWS", "WORDS", "Examples", "Prompt", "Render", "Scene", "check_words",
    "random_examples", "render",
]  # fmt: skip

WORDS = ("a", "an", "photo", "of", "small", *COLOURS, *KINDS, *VIEWS, "view")
FULL_SIZES, SMALL_SIZES = (0.92, 1.05), (0.66, 0.76)
MODAL_SIZE, MODAL_SMALL_SIZE = 1.0, 0.71
LOW_ELEVATIONS, OVERHEAD_ELEVATIONS = (-5.0, 45.0), (62.0, 88.0)
OVERHEAD_SHARE = 0.2  # of the views of a prompt that names none
MODAL_VIEWS = {
    None: (0.0, 15.0),
    "front": (0.0, 15.0),
    "side": (90.0, 15.0),
    "back": (180.0, 15.0),
    "overhead": (0.0, 75.0),
}

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Prompt:
    """What a caption says; None stands for what it leaves open."""

    kind: str
    colour: str | None = None
    view: str | None = None
    small: bool = False
    photo: bool = False

    def __str__(self) -> str:
        noun = " ".join(word for word in ("small" if self.small else None, self.colour, self.kind) if word)
        article = "an" if noun[0] in "aeiou" else "a"
        opening = "a photo of " if self.photo else ""
        return f"{opening}{article} {noun}" + (f", {self.view} view" if self.view else "")

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """Read a caption of the grammar; capitals and a closing full stop do not matter.

        Raises:
            ValueError: an unknown word (with the nearest known ones), or words in another order.
        """
        check_words(text)
        match = _GRAMMAR.fullmatch(text.lower().strip().rstrip("."))
        if not match:
            raise ValueError(
                f"prompt is {text!r}; the pocket world reads"
                " '[a photo of] a|an [small] [colour] kind [, front|side|back|overhead view]'"
            )
        said = match.groupdict()
        return cls(said["kind"], said["colour"], said["view"], said["small"] is not None, said["photo"] is not None)

    def scene(self, generator: torch.Generator | None = None) -> Scene:
        """A scene that the prompt may mean: size, proportions, background and an open colour are drawn."""
        size, *shape = torch.rand(5, generator=generator).tolist()
        low, high = SMALL_SIZES if self.small else FULL_SIZES
        a, b, c, d = (2 * s - 1 for s in shape)
        colour = _draw(tuple(COLOURS), generator)
        background = _draw(tuple(BACKGROUNDS), generator)
        return Scene(self.kind, self.colour or colour, low + (high - low) * size, (a, b, c, d), background)

    def mode(self) -> Scene:
        """The scene in the middle of the distribution: middling proportions, a grey background.

        Every colour is as likely as the next where none is named; the first one stands for them.
        """
        return Scene(self.kind, self.colour or next(iter(COLOURS)), MODAL_SMALL_SIZE if self.small else MODAL_SIZE)

    def cameras(self, count: int, generator: torch.Generator | None = None) -> Cameras:
        """Cameras from which the prompt's view word holds, at the default distance."""
        return self.cameras_at(torch.rand(4, count, generator=generator))

    def cameras_at(self, u: Tensor) -> Cameras:
        """The same of given numbers (4, count) in [0, 1): equal ones give equal cameras, near ones mostly near cameras."""
        azimuth = 360 * u[0] - 180
        if self.view == "front":
            azimuth = FRONT_BORDER * (2 * u[0] - 1)
        elif self.view == "side":
            side = torch.where(u[1] < 0.5, -1.0, 1.0)
            azimuth = side * (FRONT_BORDER + (BACK_BORDER - FRONT_BORDER) * u[0])
        elif self.view == "back":
            azimuth = 180 + (180 - BACK_BORDER) * (2 * u[0] - 1)
        overhead = u[2] < OVERHEAD_SHARE if self.view is None else torch.tensor(self.view == "overhead")
        return Cameras(
            azimuth, torch.where(overhead, _between(OVERHEAD_ELEVATIONS, u[3]), _between(LOW_ELEVATIONS, u[3]))
        )

    def modal_camera(self) -> Cameras:
        """The camera in the middle of the prompt's view; from the front if it names none."""
        return Cameras(*MODAL_VIEWS[self.view])


_GRAMMAR = re.compile(
    r"(?P<photo>a photo of )?an? (?P<small>small )?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) )?(?P<kind>{'|'.join(KINDS)})(?:, (?P<view>{'|'.join(VIEWS)}) view)?"
)


def check_words(prompt: str) -> None:
    """Refuse a prompt with words that the pocket model has never read; the empty prompt passes.

    Raises:
        ValueError: names each unknown word and the nearest known ones.
    """
    unknown = [word for word in re.findall(r"[^\s,.]+", prompt.lower()) if word not in WORDS]
    if unknown:
        hints = (f"{word!r} (nearest: {', '.join(difflib.get_close_matches(word, WORDS, 3, 0))})" for word in unknown)
        raise ValueError(f"prompt {prompt!r} has unknown words: {'; '.join(hints)}. Known words: {' '.join(WORDS)}")


class Examples(NamedTuple):
    """Scenes, a camera each, and a caption each; `prompts[i]` is true of `scenes[i]` as `cameras[i]` sees it."""

    scenes: list[Scene]
    cameras: Cameras
    prompts: list[Prompt]


def random_examples(count: int, generator: torch.Generator | None = None) -> Examples:
    """Draw training examples: kinds and colours evenly, every fourth object small, captions in all phrasings.

    A caption leaves out the colour once in twenty, the view word two times in five, and is a "photo of" once in three.
    """
    scenes: list[Scene] = []
    prompts: list[Prompt] = []
    spoken = torch.rand(count, 4, generator=generator)
    for small, colour, _, photo in spoken.tolist():
        prompt = Prompt(_draw(tuple(KINDS), generator), None, None, small < 1 / 4, photo < 1 / 3)
        scene = prompt.scene(generator)
        scenes.append(scene)
        prompts.append(replace(prompt, colour=scene.colour if colour < 0.95 else None))
    cameras = Prompt(next(iter(KINDS))).cameras(count, generator)
    views = zip(prompts, cameras.view_words(), spoken[:, 2].tolist(), strict=True)
    return Examples(scenes, cameras, [replace(p, view=view if said < 0.6 else None) for p, view, said in views])


def _draw(choices: Sequence[Choice], generator: torch.Generator | None) -> Choice:
    return choices[int(torch.randint(len(choices), (1,), generator=generator))]


def _between(bounds: tuple[float, float], u: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * u
