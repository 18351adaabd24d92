"""Finding and loading a model: names, folders, the cache, the Hub, devices; and what is said when none loads."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import apart, load, noise

from msd_teach import DiffusionPrior
from msd_teach.latent import loading

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

WORDS = ("a red house", "a blue car, side view")


def test_loaded_from_disk(folder1, prior):
    assert prior.shape == (4, 8, 8)
    assert prior.prediction in ("epsilon", "v_prediction")
    assert repr(load(folder1)) == f"DiffusionPrior({str(folder1)!r}: epsilon, latents (4, 8, 8), torch.float32 on cpu)"
    assert not prior.scheduler.config["clip_sample"]


def test_bfloat16(folder1, prior1):
    """The UNet and the text encoder compute in it; states and the autoencoder stay in float32."""
    half, z = load(folder1, dtype=torch.bfloat16), noise(2, 4, 8, 8)
    assert {half.unet.dtype, half.pipeline.text_encoder.dtype} == {torch.bfloat16}
    got = half.denoiser(WORDS, scale=2.0)(z, 1.0)
    assert got.dtype == torch.float32
    assert 0 < apart(got, prior1.denoiser(WORDS, scale=2.0)(z, 1.0)) < 5e-2


@pytest.fixture(scope="module")
def halves(prior1, tmp_path_factory) -> Path:
    """The first model, its weights in files of half size only."""
    folder = tmp_path_factory.mktemp("halves")
    prior1.pipeline.save_pretrained(folder, variant="fp16")
    return folder


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_files_of_half_size_only(halves, prior1, dtype):
    assert not list(halves.glob("*/model.safetensors"))
    assert load(halves, dtype=dtype).dtype == dtype or dtype is None
    z = noise(1, 4, 8, 8)
    with torch.no_grad():
        assert apart(load(halves).denoiser("")(z, 1.0), prior1.denoiser("")(z, 1.0)) < 1e-2


def test_of_both_sizes_the_right_one_is_read(halves, folder1, tmp_path):
    """Files of half size here hold other weights, so that it shows which were read."""
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(folder1, tmp_path / "model")
    for path in halves.glob("*/*.safetensors"):
        shutil.copy(path, model / path.parent.name)
    (unet,) = (model / "unet").glob("*.fp16.safetensors")
    save_file({key: 0 * value for key, value in load_file(unet).items()}, unet, {"format": "pt"})
    assert load(model, dtype=torch.float16).unet.conv_in.weight.abs().max() == 0
    assert load(model).unet.conv_in.weight.abs().max() > 0
    for path in (model / "unet").glob("diffusion_pytorch_model.safetensors"):
        path.unlink()  # one part in half size only, the others in both
    assert load(model).unet.conv_in.weight.abs().max() == 0


@pytest.mark.parametrize("files", ["both", "whole", "half"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_files_of_half_size_are_downloaded_for_half_precision(monkeypatch, folder1, files, dtype):
    """The Hub's answers are made up; diffusers chooses among its files."""
    import diffusers.pipelines.pipeline_utils as hub
    import huggingface_hub

    names = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"]
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        names += [f"{part}/config.json", *([f"{part}/{stem}.safetensors"] if files != "half" else [])]
        names += [f"{part}/{stem}.fp16.safetensors"] if files != "whole" else []
    asked: list[str] = []

    def snapshot(name: str, allow_patterns: list[str], **options: Any) -> str:
        asked.extend(allow_patterns)
        raise ArithmeticError("far enough")

    siblings = [SimpleNamespace(rfilename=name) for name in names]
    monkeypatch.setattr(hub, "model_info", lambda *a, **k: SimpleNamespace(sha="0", siblings=siblings))
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    for module in (hub, huggingface_hub):
        monkeypatch.setattr(module, "hf_hub_download", lambda name, file, **k: str(folder1.parent / "nowhere" / file))
    monkeypatch.setattr(loading, "declared", lambda index: "StableDiffusionPipeline")
    monkeypatch.setattr(
        hub.DiffusionPipeline, "_dict_from_json_file", lambda *a: json.loads((folder1 / "model_index.json").read_text())
    )
    with pytest.raises(ArithmeticError):
        loading.fetched("somebody/model", dtype, offline=False)
    got = {".fp16" in name for name in asked if name.endswith(".safetensors")}
    assert got == {files == "half" or (files == "both" and dtype == torch.float16)}


def test_pointers_of_git_lfs(folder1, tmp_path):
    model = shutil.copytree(folder1, tmp_path / "model")
    (model / "vae" / "diffusion_pytorch_model.safetensors").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 492265168\n"
    )
    with pytest.raises(
        ValueError, match=r"vae.diffusion_pytorch_model.safetensors is a pointer of Git LFS.*git lfs pull"
    ):
        load(model)


@pytest.mark.parametrize("name", ["dreamshaper.safetensors", "old.ckpt"])
def test_a_checkpoint_in_one_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"model is '{name}'; there is no such folder or file"):
        load(Path(name))
    Path(name).write_bytes(bytes(16))
    for given in (name, tmp_path / name):
        with pytest.raises(
            ValueError, match=r"a file; .* DiffusionPrior\(diffusers.StableDiffusionPipeline.from_single_file"
        ):
            load(given)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:97", torch.device("mps", 9), 3.5])
def test_a_device_that_is_not_there(monkeypatch, device):
    monkeypatch.setattr(loading, "read", None)  # it is found out before
    with pytest.raises(ValueError, match=rf"device is '{device}', which is not to be had here \(.+\); 'cpu' always is"):
        DiffusionPrior.from_pretrained("pocket", device=device)


def test_nothing_is_said_that_is_not_true(folder1, tmp_path):
    """Half precision on the CPU works; settings of an old release are no fault of the reader's."""
    model = shutil.copytree(folder1, tmp_path / "model")
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps_offset": 0, "unheard_of": 3}))
    code = "\n".join(
        [
            "import torch; from msd_teach import DiffusionPrior",
            f"prior = DiffusionPrior.from_pretrained({str(model)!r}, device='cpu', dtype=torch.float16)",
            "DiffusionPrior(prior.pipeline).denoiser('')(torch.zeros(1, 4, 8, 8), 1.0)",
        ]
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""


def test_the_environment_names_the_model(folder1, monkeypatch):
    monkeypatch.setenv("MSD_TEACH_MODEL", str(folder1))
    assert DiffusionPrior.from_pretrained(device="cpu").name == str(folder1)


def test_without_a_name_it_is_the_pocket_model(folder1, tmp_path, monkeypatch):
    monkeypatch.delenv("MSD_TEACH_MODEL", raising=False)
    pocket = loading.BUNDLED["pocket"]
    monkeypatch.setitem(loading.BUNDLED, "pocket", pocket._replace(verified=lambda: folder1))
    assert DiffusionPrior.from_pretrained(device="cpu").name == str(folder1)
    assert DiffusionPrior.from_pretrained("pocket", device="cpu").name == str(folder1)


def test_the_list_of_ids_is_tried_in_order(folder1, monkeypatch):
    monkeypatch.setattr(loading, "STABLE_DIFFUSION_IDS", ("gone/first", "gone/second", str(folder1), "gone/third"))
    prior = DiffusionPrior.from_pretrained("stable-diffusion", device="cpu", local_files_only=True)
    assert prior.name == str(folder1)


def test_a_missing_network_is_waited_for_once(monkeypatch):
    """The Hub's client retries for 23 seconds; six ids would take minutes."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[tuple[str, bool]] = []

    def read(name: str, dtype: torch.dtype, offline: bool):
        asked.append((name, offline))
        raise LocalEntryNotFoundError("no answer")

    monkeypatch.setattr(loading, "read", read)
    with pytest.raises(ValueError, match="could not be loaded") as e:
        DiffusionPrior.from_pretrained("stable-diffusion", device="cpu")
    assert str(e.value).count("not in the cache") == 6 and str(e.value).count("the Hub does not answer") == 1
    first, *others = loading.STABLE_DIFFUSION_IDS
    assert asked == [(first, True), (first, False), *((name, True) for name in others)]


IMPORT = """
import sys
from msd_teach import DiffusionPrior
print(*sorted({"diffusers", "transformers", "huggingface_hub"} & set(sys.modules)), DiffusionPrior.__name__)
"""


def test_importing_the_name_loads_no_diffusers():
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["DiffusionPrior"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_precision_on_a_gpu(folder1, prior1):
    on_gpu, z = DiffusionPrior.from_pretrained(folder1, device="cuda"), noise(2, 4, 8, 8)
    assert (on_gpu.unet.dtype, on_gpu.vae.dtype) == (torch.float16, torch.float32)
    assert on_gpu.vae.use_slicing
    got = on_gpu.denoiser(WORDS)(z.cuda(), torch.tensor([0.5, 2.0], device="cuda"))
    assert (got.dtype, got.device.type) == (torch.float32, "cuda")
    assert apart(got.cpu(), prior1.denoiser(WORDS)(z, torch.tensor([0.5, 2.0]))) < 2e-2
    assert on_gpu.decode(on_gpu.encode(noise(2, 3, 16, 16).sigmoid().cuda())).shape == (2, 3, 16, 16)


def test_a_full_gpu(folder1, monkeypatch):
    def full(*a: Any):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ValueError, match=r"out of GPU memory in moving .* What helps: .*dtype=torch.float16"):
        load(folder1)


# ---------------------------------------------------------------- refusals


def test_a_model_that_is_not_there(monkeypatch):
    with pytest.raises(
        ValueError, match=r"(?s)model is 'nobody/nothing'.*Tried:\n  nobody/nothing: .*'pocket'.*cache"
    ) as e:
        DiffusionPrior.from_pretrained("nobody/nothing", local_files_only=True)
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in str(e.value)
    assert "Without a network" in str(e.value)

    def unreadable(name, dtype, offline):
        raise OSError("not here")

    monkeypatch.setattr(loading, "read", unreadable)  # a reader may well have one of them in a cache
    with pytest.raises(ValueError, match="Tried") as e:
        DiffusionPrior.from_pretrained("stable-diffusion", local_files_only=True)
    for name in loading.STABLE_DIFFUSION_IDS:
        assert f"  {name}: " in str(e.value)


def test_missing_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'msd_teach\[diffusion\]'"):
        DiffusionPrior.from_pretrained("nobody/nothing", local_files_only=True)


def test_missing_pocket_weights(tmp_path, monkeypatch):
    from msd_teach import pocket

    monkeypatch.delenv("MSD_TEACH_MODEL", raising=False)
    monkeypatch.setattr(pocket.weights, "__defaults__", (tmp_path,))
    with pytest.raises(ValueError, match="pocket weights are missing"):
        DiffusionPrior.from_pretrained()


@pytest.mark.parametrize(
    ("pipeline", "family"),
    [
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("StableDiffusionInpaintPipeline", "another family"),
    ],
)
def test_another_family_is_named_before_its_weights_are_read(tmp_path, pipeline, family):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(
        ValueError, match=rf"is {family} \(its pipeline is {pipeline}\); supported are Stable Diffusion 1"
    ):
        DiffusionPrior.from_pretrained(tmp_path)


def test_pickled_weights_are_refused(folder1, tmp_path):
    model = shutil.copytree(folder1, tmp_path / "model")
    (weights,) = (model / "unet").glob("*.safetensors")
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="could not be loaded"):
        DiffusionPrior.from_pretrained(model, device="cpu")


def test_a_model_without_its_words_is_refused(folder1, tmp_path):
    """Transformers would make a tokenizer of two words, to which all prompts are alike."""
    model = shutil.copytree(folder1, tmp_path / "model")
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (model / "tokenizer" / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"the tokenizer knows 2 words of the text encoder's \d+; files of it"):
        DiffusionPrior.from_pretrained(model, device="cpu")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_missing_weights_are_not_made_up(folder1, tmp_path, part):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(folder1, tmp_path / "model")
    (path,) = (model / part).glob("*.safetensors")
    weights = load_file(path)
    lost = sorted(weights)[3]
    del weights[lost]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 weights are missing, (text_model\.)?{re.escape(lost)} among them"):
        DiffusionPrior.from_pretrained(model, device="cpu")


@pytest.mark.parametrize("dtype", ["float16", torch.int64, torch.complex64])
def test_a_precision_that_is_none(folder1, dtype):
    """Diffusers would go on in float32 if it were a name."""
    with pytest.raises(
        ValueError, match=rf"dtype is {re.escape(repr(dtype))}; it must be a torch.dtype, of torch.float16"
    ):
        DiffusionPrior.from_pretrained(folder1, dtype=dtype)


def test_a_pipeline_is_no_name(prior1):
    with pytest.raises(ValueError, match="model is a StableDiffusionPipeline; it must be a name"):
        DiffusionPrior.from_pretrained(prior1.pipeline)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nor/this", "~/nor_this", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ValueError, match=rf"model is '{name}'; there is no such folder"):
        DiffusionPrior.from_pretrained(name)


def test_libraries_are_as_they_were(folder1):
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as of_transformers

    def state() -> list:
        levels = [logging.getLogger(name).level for name in ("diffusers", "transformers", "huggingface_hub")]
        bars = of_diffusers.is_progress_bar_enabled(), of_transformers.is_progress_bar_enabled()
        return [*levels, *bars, are_progress_bars_disabled(), list(warnings.filters)]

    before = state()
    of_diffusers.disable_progress_bar()
    try:
        changed = state()
        with loading.quietly(bars=True):
            assert not are_progress_bars_disabled()  # a download of gigabytes shows its own
        with loading.quietly(bars=False):
            assert not of_transformers.is_progress_bar_enabled() and are_progress_bars_disabled()
        assert state() == changed
    finally:
        of_diffusers.enable_progress_bar()
    load(folder1)
    assert state() == before


def test_code_in_a_model_is_not_run(folder1, tmp_path):
    model, trace = shutil.copytree(folder1, tmp_path / "model"), tmp_path / "trace"
    (model / "unet" / "own.py").write_text(f"open({str(trace)!r}, 'w')\nclass Own: pass\n")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"unet": ["own", "Own"]}))
    with pytest.raises(ValueError, match="could not be loaded"):
        DiffusionPrior.from_pretrained(model, device="cpu")
    assert not trace.exists()


def test_only_the_pocket_model_refuses_words_it_never_read(folder1, monkeypatch):
    prior = load(folder1)
    prior.denoiser("a red zeppelin")
    pocket = loading.BUNDLED["pocket"]
    monkeypatch.setitem(loading.BUNDLED, "pocket", pocket._replace(folder=folder1))
    refused: tuple[dict[str, Any], ...] = ({"prompt": "a blu house"}, {"prompt": WORDS[0], "negative": "a blu house"})
    for options in refused:
        with pytest.raises(ValueError, match=r"'a blu house' has unknown words: 'blu' \(nearest: blue"):
            prior.denoiser(**options)
    prior.denoiser(WORDS, negative="a photo of a small pink robot, back view.")
