import shutil
from dataclasses import replace
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
def test_every_method_goes_on_after_a_kill_bit_for_bit(
    method: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 3 * text_to_2d.STEPS_PER_TARGET.get(method, 1)
    task = TextTo2D(("a house", "a car"), method, steps, image="latents", model=model)
    x = task.carry_out(tmp_path / "whole", device="cpu")
    save, follow = run.Checkpoint.save, run.follow

    def killed(checkpoint: run.Checkpoint, **numbers: float) -> None:
        save(checkpoint, **numbers)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(run.Checkpoint, "save", killed)
        patch.setattr(run, "follow", lambda *arguments: follow(*arguments, checkpoint_every=1))
        with pytest.raises(SystemExit):
            task.carry_out(tmp_path / "broken", device="cpu")
    assert torch.equal(x, task.carry_out(tmp_path / "broken", device="cpu"))
    whole, broken = run.metrics(tmp_path / "whole"), run.metrics(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole.keys() - {"seconds"})
    assert whole["step"].tolist() == [0, 1, 2]
    assert (tmp_path / "whole" / "result.png").read_bytes() == (tmp_path / "broken" / "result.png").read_bytes()
    assert x.shape[:2] == (2, 3) and 0 <= x.min() <= x.max() <= 1


def test_a_folder_knows_all_that_its_run_depends_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TextTo2D(("a house",), "mean-shift", 1, image="latents", model=model)
    still = replace(task, rate=0.0).carry_out(tmp_path / "still", "cpu")
    assert not torch.equal(task.carry_out(tmp_path / "run", "cpu"), still), "a rate of 0 is 0, and not the usual one"
    moved = str(shutil.copytree(model, tmp_path / "other"))
    loaded = text_to_2d.loaded
    for changed, patch in {
        r"rate was 0.01 and is 0.5": lambda: monkeypatch.setitem(text_to_2d.RATES, "latents", 0.5),
        r"weights was .*model' and is .*other'": lambda: monkeypatch.setattr(
            text_to_2d, "loaded", lambda model, device: loaded(moved, device)
        ),
    }.items():
        patch()
        with pytest.raises(ValueError, match=changed):
            task.carry_out(tmp_path / "run", "cpu")
        monkeypatch.undo()


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
        r"steps is 30; 'sdi' takes 25 a target, so it must be a multiple": {"method": "sdi", "steps": 30},
        r"seed is 1.5; it must be a whole number": {"seed": 1.5},
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
    with pytest.raises(ValueError, match=r"seeds is 1001; it may be 1000 at most"):
        text_to_2d.sweep(prompts, ["sds"], 1001, batch=2)
    with pytest.raises(ValueError, match=r"share is \(2, 2\); it must be \(rank, world\)"):
        text_to_2d.carry_out(runs, tmp_path, (2, 2))


def test_the_share_and_the_gpu_of_a_process_are_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_to_2d.place({}) == (0, 1)
    assert text_to_2d.place({"RANK": "1", "WORLD_SIZE": "4"}) == (1, 4)
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "3"}
    assert text_to_2d.place(slurm) == (2, 3)
    assert text_to_2d.place(slurm | {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_STEP": "2"}) == (2, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for there, device in ((True, "cuda:1"), (False, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert text_to_2d.device_of({"LOCAL_RANK": "5"}) == device
        assert text_to_2d.device_of({}) is None


def test_a_report_judges_the_pictures_of_finished_runs(model: str, tmp_path: Path) -> None:
    prompts = ["a red house, front view", "a yellow duck, side view"]
    settings = {"steps": 1, "image": "latents"}
    for method, seed, rate in (("mean-shift", 0, None), ("mean-shift", 1, 0.01), ("sds", 0, None), ("sds", 0, 0.1)):
        task = TextTo2D(tuple(prompts), method, seed=seed, rate=rate, **settings)
        task.carry_out(tmp_path / f"{method}-{seed}{rate or ''}", "cpu")
    rows = report.report(tmp_path)
    assert [(row["method"], row["rate"], row["runs"], row["pictures"], row["captions"]) for row in rows] == [
        ("mean-shift", 0.01, 2, 4, 2),
        ("sds", 0.01, 1, 2, 2),
        ("sds", 0.1, 1, 2, 2),
    ]
    assert rows[0]["calls"] == 2 and 0 <= rows[0]["judge"] <= 1
    again = report.pictures_of(tmp_path / "sds-0", 2)
    assert again.shape == (2, 3, 64, 64) and not torch.equal(again[0], again[1])
    with pytest.raises(ValueError, match=r"it must hold finished runs, with result.png"):
        report.report(tmp_path / "nowhere")
    TextTo2D(("a house",), "sds", 1, image="latents", model=model).carry_out(tmp_path / "small" / "run", "cpu")
    with pytest.raises(ValueError, match=r"run is not for the pocket model's .*: its pictures have 16 pixels a side"):
        report.report(tmp_path / "small")
    (tmp_path / "sds-0" / run.RESULT).write_bytes(b"PNG")
    with pytest.raises(ValueError, match=r"sds-0/result.png is missing or damaged"):
        report.report(tmp_path)
