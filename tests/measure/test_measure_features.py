"""Features of pictures and captions: the pocket CLIP's own, a random CLIP in torchmetrics, and what is said where none is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from msd_teach import pocket
from msd_teach.measure.features import CLIP_L14, Clip, eight_bits, inception_features
from msd_teach.measure.images import clip_score

CAPTIONS = ["a red house", "a photo of a small blue car, side view", "a mug"]


def bytes_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def tiny_clip(folder: Path) -> Path:
    """A random CLIP that takes pictures of 32 pixels, scaled as OpenAI's."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shipped = pocket.WEIGHTS / "clip"
    text = json.loads((shipped / "config.json").read_text())["text_config"]
    processor = cast(Any, CLIPProcessor).from_pretrained(shipped)
    prepare = processor.image_processor
    prepare.size, prepare.crop_size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    prepare.image_mean, prepare.image_std = [0.4815, 0.4578, 0.4082], [0.2686, 0.2613, 0.2758]
    config = CLIPConfig(
        text_config=text | small, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_pocket_clip_is_the_default_scorer() -> None:
    from msd_teach.pocket.clip import picture_features, text_features, tokens

    clip = Clip.from_pretrained(device="cpu")
    x = bytes_of(3, 3, 64, 64) / 127.5 - 1
    torch.testing.assert_close(clip.pictures(x), picture_features(clip.network, x), atol=1e-5, rtol=0)
    ids = tokens(cast(Any, clip.processor).tokenizer, CAPTIONS)
    torch.testing.assert_close(clip.captions(CAPTIONS), text_features(clip.network, ids), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="unknown words: 'hause'"):
        clip.captions(["a red hause"])
    for wrong in ("a red house", []):
        with pytest.raises(ValueError, match=r"texts is .* must be a list"):
            clip.captions(cast(Any, wrong))


def test_any_clip_scores_as_in_torchmetrics(tmp_path: Path) -> None:
    functional = pytest.importorskip("torchmetrics.functional.multimodal")
    clip = Clip.from_pretrained(tiny_clip(tmp_path), device="cpu")
    images = bytes_of(3, 3, 48, 40)
    features, texts = clip.pictures(images / 127.5 - 1), clip.captions(CAPTIONS)
    assert features.shape == texts.shape == (3, 8)

    class Plain:
        """The model in transformers 4, whose features were tensors: torchmetrics knows no other yet."""

        config = clip.network.config

        def to(self, device: torch.device) -> Plain:
            return self

        def get_image_features(self, *inputs: Tensor) -> Tensor:
            return clip.network.visual_projection(clip.network.vision_model(*inputs).pooler_output)

        def get_text_features(self, *inputs: Tensor) -> Tensor:
            return clip.network.text_projection(clip.network.text_model(*inputs).pooler_output)

    scores = [
        functional.clip_score(image, text, lambda: (Plain(), clip.processor)).item()  # each alone is cut at 0
        for image, text in zip(images, CAPTIONS, strict=True)
    ]
    assert max(scores) > 1
    assert clip_score(features, texts)[0] == pytest.approx(sum(scores) / 3, abs=1e-3)


def test_a_clip_that_is_not_to_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for model in (CLIP_L14, tmp_path):
        with pytest.raises(ValueError, match=rf"model is '{model}'; .* could not be loaded .*Without a network"):
            Clip.from_pretrained(model)
    from safetensors.torch import load_file, save_file

    weights = tiny_clip(tmp_path / "part") / "model.safetensors"
    kept = {key: value for key, value in load_file(weights).items() if key != "visual_projection.weight"}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing"):
        Clip.from_pretrained(tmp_path / "part")


def test_inception_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    x = 1.3 * torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install .* torch-fidelity"):
        inception_features(x)
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"weights is '.*checkpoints.*'; .*No such file.* must be the file https://"):
        inception_features(x)

    class Code:
        def __reduce__(self) -> tuple:
            return print, ("run",)

    torch.save({"a": Code()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="Weights only load failed"):
        inception_features(x, tmp_path / "code.pth")

    class Network(nn.Module):
        """Takes the place of one of 24 million parameters."""

        def __init__(self, *which: object) -> None:
            super().__init__()
            assert which == ("inception-v3-compat", ["2048"], str(tmp_path / "weights.pth"))

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.uint8 and len(x) <= 50
            return x.flatten(1).float()

    torch.save({}, tmp_path / "weights.pth")
    monkeypatch.setattr(fid, "NoTrainInceptionV3", Network)
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round().flatten(1)
    assert torch.equal(inception_features(x, tmp_path / "weights.pth"), expected)


def test_eight_bits_there_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(eight_bits(images / 127.5 - 1), images)
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
            eight_bits(wrong)
