"""Text-to-3D at the smallest size: every method in both phases, kills, exports, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("trimesh")
pytest.importorskip("skimage")

import trimesh
from diffusers import UNet2DConditionModel
from tiny import load, tiny

from msd_teach import DiffusionPrior, MeanShift, files
from msd_teach.pocket.world import BACKGROUNDS, Prompt
from msd_teach.pocket.world import render as render_scenes
from msd_teach.render.fit import reconstruct
from msd_teach.render.nerf import Field
from msd_teach.runs import run, text_to_3d
from msd_teach.runs.text_to_2d import METHODS, STEPS_PER_TARGET
from msd_teach.runs.text_to_3d import Decoded, TextTo3D, antithetic, export, field_of
from msd_teach.schedules import linear
from msd_teach.targets import Target


def small(**changes: Any) -> dict[str, Any]:
    return text_to_3d.BUDGETS["smoke"] | {"size": 8} | changes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny(tmp_path_factory.mktemp("model"), "1"))


@pytest.fixture(scope="module")
def done(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "house"
    TextTo3D("a house", model=model, **small(steps=3)).carry_out(folder, "cpu")
    return folder


def killed(task: TextTo3D, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[int]:
    """The task's run, killed after each checkpoint, of which there is one a step."""
    save, follow = run.Checkpoint.save, run.follow

    def die(checkpoint: run.Checkpoint, **numbers: float) -> None:
        save(checkpoint, **numbers)
        raise SystemExit

    patch.setattr(run.Checkpoint, "save", die)
    patch.setattr(run, "follow", lambda *arguments: follow(*arguments, checkpoint_every=1))
    for step in range(task.steps // task.steps_per_target):
        with pytest.raises(SystemExit):
            task.carry_out(folder, device="cpu")
        yield step


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_after_kills_bit_for_bit_and_counts_its_calls(
    method: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 3 * STEPS_PER_TARGET.get(method, 1)
    task = TextTo3D("a red house", method, model=model, **small(steps=steps))
    monkeypatch.setattr(text_to_3d, "EVERY", 1)  # looks at what is empty, within three steps
    rows, forward = 0, UNet2DConditionModel.forward

    def counting(network: Any, z: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal rows
        rows += len(z)
        return forward(network, z, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", counting)
        field = task.carry_out(tmp_path / "whole", device="cpu")
    whole = run.metrics(tmp_path / "whole")
    assert whole["step"].tolist() == [0, 1, 2]
    assert whole["calls"][-1] * task.views == rows > 0
    assert (whole["penalty"] > 0).tolist() == [False, True, True], "in pixels"

    with monkeypatch.context() as patch:
        assert list(killed(task, tmp_path / "broken", patch)) == [0, 1, 2]
    again = task.carry_out(tmp_path / "broken", device="cpu").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in field.state_dict().items())
    broken = run.metrics(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole.keys() - {"seconds"})
    assert (tmp_path / "whole" / run.RESULT).read_bytes() == (tmp_path / "broken" / run.RESULT).read_bytes()


def test_targets_in_pixels_are_the_methods_own_decoded(model: str) -> None:
    prior, x = load(Path(model)), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    denoise = prior.denoiser("a house")
    method = MeanShift(linear(2.0, 1.0))
    target = Decoded(method, prior)(denoise, x, 0.5, None)
    assert torch.equal(target.value, prior.decode(denoise(prior.encode(x), 1.5)))
    assert target[1:] == method(denoise, prior.encode(x), 0.5, None)[1:]


def test_antithetic_cameras_are_training_cameras_spread_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [antithetic(5, generator) for _ in range(2000)]
    for cameras in drawn[:100]:
        azimuth = cameras.azimuth.sort().values
        torch.testing.assert_close(azimuth.diff(), torch.full((4,), 72.0), atol=1e-3, rtol=0)
        assert cameras.view_words().count("overhead") == 1, "one view in five is from above"
    many = Prompt("house").cameras(10000, generator)
    for name in ("azimuth", "elevation"):
        mine = torch.stack([getattr(cameras, name)[3] for cameras in drawn]).sort().values
        share = torch.searchsorted(getattr(many, name).sort().values, mine) / 10000
        even = (torch.arange(2000) + 0.5) / 2000
        assert (share - even).abs().max() < 1.63 * math.sqrt(1 / 2000 + 1 / 10000), f"{name}: Kolmogorov-Smirnov, 1 %"


def test_views_have_their_own_words(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TextTo3D("a house", "mean-shift", model=model, **small(steps=1, views=4))
    heard: list[Any] = []
    cameras = text_to_3d.Cameras(torch.tensor([10.0, 100.0, 180.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 80.0]))
    monkeypatch.setattr(text_to_3d, "antithetic", lambda count, generator: cameras)
    work = text_to_3d._Work(task, "cpu")
    monkeypatch.setattr(work.prior, "denoiser", lambda prompts, **_: heard.append(prompts) or (lambda z, sigma: z))
    next(work.distilled(False, None))
    assert heard[1] == [f"a house, {view} view" for view in ("front", "side", "back", "overhead")]


def test_a_forecast_is_of_the_whole_run(model: str) -> None:
    task = TextTo3D("a house", model=model, **small(steps=50))
    short, long = task.forecast("cpu"), replace(task, steps=5000).forecast("cpu")
    assert short.seconds * 20 < long.seconds < short.seconds * 500, "100 times, but for what disturbs a clock"
    assert 2**26 < short.memory < 2**36
    assert str(short).startswith("about 0.")


def test_nan_stops_a_run_and_keeps_its_checkpoint(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TextTo3D("a house", "mean-shift", model=model, **small(steps=80))

    def breaking(denoise: Any, x: torch.Tensor, progress: float, generator: Any) -> Target:
        return Target(x * (torch.nan if progress > 0.9 else 0.5), 1.0, 1, 1.0)

    monkeypatch.setitem(METHODS, "mean-shift", lambda prior, generator: breaking)
    with pytest.raises(
        FloatingPointError, match=r"step 72 .*target is not finite; .*checkpoint.pt is good, of step 49"
    ):
        task.carry_out(tmp_path / "run", "cpu")
    assert all(p.isfinite().all() for p in field_of(tmp_path / "run").parameters())


def test_exports_load_back(done: Path) -> None:
    endings = (".glb", ".ply", ".obj")
    meshes: dict[str, Any] = {e: trimesh.load(export(done, e, 24), force="mesh") for e in endings}
    for ending, mesh in meshes.items():
        assert (abs(mesh.bounds - meshes[".ply"].bounds) < 1e-4).all(), ending
        assert mesh.volume > 0.01
        assert ending != ".ply" or mesh.visual.vertex_colors.shape == (len(mesh.vertices), 4)
    from imageio import v3

    film = list(v3.imiter(export(done, ".mp4", side=16), plugin="pyav"))
    assert len(film) == text_to_3d.FRAMES
    assert film[0].shape == (16, 16, 3)


def test_an_object_without_a_surface_is_named(done: Path, tmp_path: Path) -> None:
    kept = files.load(done / run.CHECKPOINT)
    kept["parts"]["field"]["network.biases.2"][..., 0] = -60.0
    files.save_atomically(kept, tmp_path / run.CHECKPOINT)
    (tmp_path / run.SETTINGS).write_bytes((done / run.SETTINGS).read_bytes())
    with pytest.raises(ValueError, match="density has no surface"):
        export(tmp_path, ".glb", 24)
    assert [path.name for path in tmp_path.iterdir() if "object" in path.name] == []


def test_bad_settings_and_folders_are_refused(done: Path, tmp_path: Path) -> None:
    for said, settings in {
        r"prompt is ''; it must be a string, and not empty": {"prompt": ""},
        r"prompt is 'a house, front view'; leave out the view": {"prompt": "a house, front view"},
        r"method is 'SDS'; it may be one of sds, sds-annealed": {"method": "SDS"},
        r"steps is 0; it must be a whole number": {"steps": 0},
        r"steps is 30; 'sdi' takes 25 a target": {"method": "sdi", "steps": 30},
        r"entropy is -1; it must be a number, from 0": {"entropy": -1},
        r"polish is 1.5; it must be a number, from 0 to 1": {"polish": 1.5},
        r"views is 0; it must be": {"views": 0},
        r"size is 0; it must be": {"size": 0},
        r"seed is 1.5; it must be a whole number": {"seed": 1.5},
        r"scale is nan; it must be a number": {"scale": float("nan")},
        r"rate is -1; it must be a number, from 0": {"rate": -1},
    }.items():
        with pytest.raises(ValueError, match=said):
            TextTo3D(**({"prompt": "a house"} | settings))
    with pytest.raises(ValueError, match=r"ending is '.stl'; it may be one of .glb, .ply, .obj, .webp"):
        export(done, ".stl")
    with pytest.raises(ValueError, match=r"it must be that of a run"):
        export(tmp_path)
    (tmp_path / run.SETTINGS).write_text('{"prompts": ["a house"]}')
    with pytest.raises(ValueError, match=r"it must be that of a run of text-to-3d, with checkpoint.pt"):
        export(tmp_path)


@pytest.mark.slow
def test_figures_tell_a_known_object_from_a_cloud() -> None:
    """A red house fitted to its own pictures is what its prompt says, and no blue duck; an untrained field is neither."""
    prior, generator = DiffusionPrior.from_pretrained("pocket", device="cpu"), torch.Generator().manual_seed(0)
    prompt = Prompt("house", "red")
    cameras, scene = prompt.cameras(40, generator), prompt.mode()
    names = [list(BACKGROUNDS)[i % len(BACKGROUNDS)] for i in range(40)]
    behind = torch.tensor([BACKGROUNDS[name] for name in names])
    seen = render_scenes([replace(scene, background=name) for name in names], cameras, 48).image
    field = reconstruct(seen, cameras, behind, 250, 512, samples=32, finest=32, generator=generator)

    def figures(field: Field, said: str) -> dict[str, float]:
        return text_to_3d.figures(field, said, prior, 2, torch.Generator().manual_seed(1))

    house, duck, cloud = figures(field, "a red house"), figures(field, "a blue duck"), figures(Field(), "a red house")
    assert house["IoU"] > 0.9 > max(duck["IoU"], cloud["IoU"])
    assert house["kind"] > 0.9 and house["colour"] > 0.9 and house["front"] > 0.9 and house["Janus rate"] < 0.1
    assert duck["kind"] < 0.1 and duck["colour"] < 0.1
    assert house["PSNR"] > cloud["PSNR"] + 5 and 0.1 < house["detail"] < 1.1
    assert all(math.isfinite(value) for value in house.values()) and math.isnan(cloud["detail"])
