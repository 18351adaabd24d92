"""Pictures and captions as features of known networks: what the distances and scores of `images` are made of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..latent.loading import BUNDLED, POCKET, quietly, usable
from .inputs import rgb

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

CLIP_L14 = "openai/clip-vit-large-patch14"  # the usual scorer of text-to-image models
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"


@dataclass(frozen=True)
class Clip:
    """A CLIP model, its preparation of pictures and captions, and its name."""

    network: CLIPModel
    processor: CLIPProcessor
    name: str = ""

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] = POCKET, device: str | torch.device | None = None) -> Clip:
        """The pocket model's CLIP, or one of an id (`CLIP_L14`) or a folder in transformers' layout, with safetensors.

        On the GPU if there is one and no device is given.

        Raises:
            ValueError: names what could not be loaded, and says why and what helps; a device that is not there.
            ImportError: transformers is not installed.
        """
        try:
            with quietly(bars=True):
                from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise ImportError("CLIP needs more packages: pip install 'msd_teach[diffusion]'") from error
        name, place = os.fspath(model), usable(device)
        folder = BUNDLED[name].verified() / "clip" if name in BUNDLED else name
        try:
            with quietly(bars=name not in BUNDLED):  # gigabytes are not downloaded in silence
                network, found = cast(Any, CLIPModel).from_pretrained(
                    folder, use_safetensors=True, output_loading_info=True
                )
                processor = cast(Any, CLIPProcessor).from_pretrained(folder)
            if found["missing_keys"]:  # transformers would draw them at random
                raise ValueError(f"{len(found['missing_keys'])} weights are missing")
        except Exception as error:  # each library underneath has its own
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"model is {name!r}; this CLIP could not be loaded ({reason}). It may be {POCKET!r}, which is shipped, "
                f"{CLIP_L14!r}, another id of a CLIP, or a folder in transformers' layout with safetensors. Without a "
                "network: name such a folder, or load it once with a network; from then on it is found in the cache"
            ) from error
        return cls(network.to(place).eval(), processor, name)

    def pictures(self, x: Tensor) -> Tensor:
        """Unit features (N, d) of pictures (N, 3, H, W) in [-1, 1], rounded to 8 bits as files hold them.

        Raises:
            ValueError: other shapes, values that are not finite.
        """
        prepare = cast(Any, self.processor)
        return torch.cat(
            [
                picture_features(self.network, prepare(images=list(part), return_tensors="pt").pixel_values)
                for part in eight_bits(x).split(200)
            ]
        ).to(x.device)

    def captions(self, texts: list[str]) -> Tensor:
        """Unit features (M, d) of captions; what is longer than the model reads is cut.

        Raises:
            ValueError: no captions, or, for the pocket model, words that it has never read.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts is {texts!r}; it must be a list of one or more captions")
        for text in texts if self.name in BUNDLED else ():
            BUNDLED[self.name].check_prompt(text)
        ids = cast(Any, self.processor)(text=list(texts), padding=True, truncation=True, return_tensors="pt").input_ids
        return text_features(self.network, ids)


@torch.no_grad()
def picture_features(network: CLIPModel, x: Tensor) -> Tensor:
    """Unit features (N, d) of pictures as CLIP takes them: of its size, and scaled as it was taught."""
    parts = [
        network.visual_projection(network.vision_model(pixel_values=p.to(network.device)).pooler_output)
        for p in x.split(200)
    ]
    return functional.normalize(torch.cat(parts), dim=-1).to(x.device)


@torch.no_grad()
def text_features(network: CLIPModel, ids: Tensor) -> Tensor:
    """Unit features (N, d) of captions as token ids (N, length)."""
    pooled = network.text_model(input_ids=ids.to(network.device)).pooler_output
    return functional.normalize(network.text_projection(pooled), dim=-1).to(ids.device)


def inception_features(x: Tensor, weights: str | os.PathLike[str] | None = None) -> Tensor:
    """Features (N, 2048) of pictures (N, 3, H, W) in [-1, 1] by the Inception network of FID and KID, in torchmetrics.

    `weights` is the file of torch-fidelity; left out, it is looked for where torch.hub keeps downloads.

    Raises:
        ValueError: no such file (with where to get it), or one that holds more than weights; other shapes.
        ImportError: torch-fidelity or torchmetrics are not installed.
    """
    images = eight_bits(x)
    try:
        import torch_fidelity  # noqa: F401  # pyright: ignore[reportMissingImports]
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise ImportError("Inception needs more packages: pip install 'msd_teach[diffusion]' torch-fidelity") from error
    path = Path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would run what is hidden in a file
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).to(x.device)
    except Exception as error:  # missing, no weights, or those of another network
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"weights is {str(path)!r}; Inception could not be loaded ({reason}). It must be the file {INCEPTION_URL}"
        ) from error
    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(50)])


def eight_bits(x: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] as bytes; what lies outside is cut. ValueError for other shapes, or NaN."""
    return ((rgb("x", x).clamp(-1, 1) + 1) * 127.5).round().to(x.device, torch.uint8)
