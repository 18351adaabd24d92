from pathlib import Path

import pytest
import torch
from tiny import tiny

from msd_teach.runs import run, text_to_2d
from msd_teach.runs.text_to_2d import TextTo2D

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny(tmp_path_factory.mktemp("model"), "1"))


@pytest.mark.parametrize("method", text_to_2d.METHODS)
def test_every_method_runs_in_a_folder_and_repeats(method: str, model: str, tmp_path: Path) -> None:
    steps = 2 * text_to_2d.STEPS_PER_TARGET.get(method, 1)
    task = TextTo2D(("a house", "a car"), method, steps, image="latents", model=model)
    x = task.carry_out(tmp_path / "a", device="cpu")
    assert torch.equal(x, task.carry_out(tmp_path / "b", device="cpu"))
    assert run.metrics(tmp_path / "a")["step"].tolist() == [0, 1]
    assert (tmp_path / "a" / "result.png").read_bytes() == (tmp_path / "b" / "result.png").read_bytes()
    assert x.shape[:2] == (2, 3) and 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("image", text_to_2d.GENERATORS)
def test_every_generator_of_images_is_moved(image: str, model: str, tmp_path: Path) -> None:
    first, last = (
        TextTo2D(("a house",), "mean-shift", steps, image=image, model=model).carry_out(tmp_path / str(steps), "cpu")
        for steps in (1, 3)
    )
    assert not torch.equal(first, last)


def test_bad_settings_are_refused() -> None:
    for said, settings in {
        r"prompts is 'a house'; it must be one or more strings, in a tuple": {"prompts": "a house"},
        r"method is 'SDS'; it may be one of sds, sds-annealed": {"method": "SDS"},
        r"image is 'nerf'; it may be one of grid, fourier, pixels, latents": {"image": "nerf"},
        r"steps is 0; it must be a whole number": {"steps": 0},
        r"scale is nan; it must be a number": {"scale": float("nan")},
        r"rate is -1; it must be a number, from 0": {"rate": -1},
    }.items():
        with pytest.raises(ValueError, match=said):
            TextTo2D(**({"prompts": ("a house",)} | settings))
