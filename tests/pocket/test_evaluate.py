"""Pictures and captions before the shipped CLIP and judge."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from msd_teach import pocket
from msd_teach.measure.features import Clip
from msd_teach.pocket.evaluate import caption_figures
from msd_teach.pocket.judge import Judge
from msd_teach.pocket.world import Prompt, render


def test_renders_fit_their_own_captions_and_no_others() -> None:
    prompts = [Prompt("house", "red", "front"), Prompt("car", "blue", "side"), Prompt("duck", "yellow")]
    captions = [str(prompt) for prompt in prompts]
    x = torch.cat([2 * render([prompt.mode()], prompt.modal_camera()).image - 1 for prompt in prompts])
    clip, judge = Clip.from_pretrained(device="cpu"), Judge.from_pretrained(pocket.WEIGHTS / "judge")
    fit = caption_figures(x, captions, clip, judge)
    assert (fit["R-precision"], fit["judge"]) == (1, 1)
    misfit = caption_figures(x, captions[1:] + captions[:1], clip, judge)
    assert (misfit["R-precision"], misfit["judge"]) == (0, 0)
    assert misfit["CLIP score"] < fit["CLIP score"] - 10
    assert misfit["saturation"] == fit["saturation"]
    twice = caption_figures(torch.cat([x, x]), captions + captions, clip, judge)
    assert (twice["pictures"], twice["captions"]) == (6, 3)
    assert twice["CLIP score"] == pytest.approx(fit["CLIP score"])
    assert twice["CLIP score error"] < fit["CLIP score error"]
