"""A small text-to-image diffusion model with Stable Diffusion's anatomy, and the 3-D world that it was taught.

from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(pocket.weights())
pipeline("a red house, front view", guidance_scale=3).images[0]
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..latent.loading import BUNDLED, Bundled

WEIGHTS = Path(__file__).parent / "weights"

__all__ = ["WEIGHTS", "version", "weights"]


def weights(folder: Path = WEIGHTS) -> Path:
    """The folder of the shipped model, after comparing every file with its checksum in SHA256SUMS.

    Raises:
        ValueError: names the files that are missing or damaged, and says how to restore them.
    """
    restore = f"restore them by reinstalling msd_teach, or with: git checkout -- {folder}"
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        raise ValueError(f"pocket weights are missing: no {sums}; {restore}")
    wrong: list[str] = []
    for line in sums.read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        path = folder / name
        if not path.exists():
            wrong.append(f"{name} (missing)")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            wrong.append(f"{name} (damaged)")
    if wrong:
        raise ValueError(f"pocket weights in {folder}: {', '.join(wrong)}; {restore}")
    return folder


def version() -> str:
    """A checksum of the shipped model: what hangs on its weights is known by it."""
    return hashlib.sha256((WEIGHTS / "SHA256SUMS").read_bytes()).hexdigest()


def check_prompt(text: str) -> None:
    """Refuse words that the model has never read, with a ValueError that names the nearest known ones."""
    from .world import check_words  # with the whole world behind it

    check_words(text)


BUNDLED["pocket"] = Bundled(WEIGHTS, weights, check_prompt)
