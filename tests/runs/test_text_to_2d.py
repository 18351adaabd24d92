from pathlib import Path

import pytest
import torch
from tiny import tiny

from msd_teach.runs import report, run, text_to_2d
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


def test_a_sweep_pairs_its_runs_and_shares_them(model: str, tmp_path: Path) -> None:
    prompts = ["a house", "a car", "a duck"]
    settings = {"steps": 2, "image": "latents", "model": model}
    runs = text_to_2d.sweep(prompts, ["sds", "mean-shift"], 2, batch=2, **settings)
    assert list(runs)[:3] == ["sds-000000", "mean-shift-000000", "sds-001000"]
    assert len(runs) == 8 and runs["sds-001001"].prompts == ("a duck",)
    text_to_2d.carry_out(runs, tmp_path / "alone")
    for rank in (1, 0, 1):  # the second was killed, and begins again
        text_to_2d.carry_out(runs, tmp_path / "shared", (rank, 2))
    for name in runs:
        alone, shared = ((tmp_path / where / name / "result.png").read_bytes() for where in ("alone", "shared"))
        assert alone == shared
    with pytest.raises(ValueError, match=r"prompts, methods are \[\], \['sds'\]; each must be a list of one or more"):
        text_to_2d.sweep([], ["sds"], 1)
    with pytest.raises(ValueError, match=r"share is \(2, 2\); it must be \(rank, world\)"):
        text_to_2d.carry_out(runs, tmp_path, (2, 2))


def test_the_share_of_a_process_is_in_its_environment() -> None:
    assert text_to_2d.place({}) == (0, 1)
    assert text_to_2d.place({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "3"}
    assert text_to_2d.place(slurm) == (2, 3)


def test_a_report_judges_the_pictures_of_finished_runs(tmp_path: Path) -> None:
    prompts = ["a red house, front view", "a yellow duck, side view"]
    for method, seed in (("mean-shift", 0), ("mean-shift", 1), ("sds", 0)):
        TextTo2D(tuple(prompts), method, 2, seed=seed).carry_out(tmp_path / f"{method}-{seed}", "cpu")
    rows = report.report(tmp_path)
    assert [(row["method"], row["runs"], row["pictures"], row["captions"]) for row in rows] == [
        ("mean-shift", 2, 4, 2),
        ("sds", 1, 2, 2),
    ]
    assert rows[0]["calls"] == 4 and 0 <= rows[0]["judge"] <= 1
    again = report.pictures_of(tmp_path / "sds-0", 2)
    assert again.shape == (2, 3, 64, 64) and not torch.equal(again[0], again[1])
    with pytest.raises(ValueError, match=r"it must hold finished runs, with result.png"):
        report.report(tmp_path / "nowhere")
