"""The stages of the pocket model's training, the gates between them, and the folder that comes out.

    python -m msd_teach.pocket train        autoencoder -> decoder -> judge -> clip -> unet, each from its last checkpoint
    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m msd_teach.pocket train --stage unet       one stage, on two cores
    python -m msd_teach.pocket export       the finished stages as a Stable Diffusion folder in fp16
    python benchmarks/pocket_model.py       the figures of the model card, from that folder

Everything on the way lies in the cache folder, one folder a stage: `checkpoint.pt`, sample sheets, `final/` and
`figures.json`. On a GPU every batch is eight times larger.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files import cache_folder
from . import WEIGHTS, autoencoder, clip, judge, unet
from .data import load_renders
from .evaluate import Figures, autoencoder_figures, clip_figures, judge_figures, missed, sample_figures

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

STAGES = ("autoencoder", "decoder", "judge", "clip", "unet")
GATES = {"decoder": "autoencoder", "judge": "judge", "clip": "clip"}  # of the UNet: stages, and what their bars go by
SHIPPED = ("judge", "clip")  # they see renders only, and serve any autoencoder and UNet
HELD_OUT = 2000
GPU_BATCHES = 8


def train(
    stage: str,
    steps: int | None = None,
    renders: int | None = None,
    past_gates: bool = False,
    start: Path | None = None,
) -> Figures:
    """Train one stage to its end, judge it on held-out scenes, and keep both; gives the figures.

    `start` is a folder of an autoencoder for that stage, or the decoder's, to begin from.

    Raises:
        ValueError: an unknown stage, or one whose forerunners are not finished.
        RuntimeError: the UNet, while the autoencoder, the judge or CLIP miss a bar (unless `past_gates`).
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; it must be one of {', '.join(STAGES)}")
    if stage == "unet" and not past_gates:
        check_gates()
    plan, own_renders = {
        "autoencoder": (autoencoder.PLAN, autoencoder.RENDERS),
        "decoder": (autoencoder.DECODER_PLAN, autoencoder.RENDERS),
        "judge": (judge.PLAN, judge.RENDERS),
        "clip": (clip.PLAN, clip.RENDERS),
        "unet": (unet.PLAN, unet.RENDERS),
    }[stage]
    batch = plan.batch * (GPU_BATCHES if torch.cuda.is_available() else 1)
    plan, renders = replace(plan, steps=steps or plan.steps, batch=batch), renders or own_renders
    if stage == "autoencoder":
        trained = autoencoder.train(renders, plan, start)
    elif stage == "decoder":
        trained = autoencoder.train_decoder(start or _finished("autoencoder"), renders, plan)
    elif stage == "unet":
        trained = unet.train(load_autoencoder(), *load_clip(), renders, plan)
    else:
        trained = {"judge": judge, "clip": clip}[stage].train(renders, plan)
    if int(os.environ.get("RANK", "0")):  # of several processes that trained together the first one goes on
        return {}
    _keep(trained.network.save_pretrained, _final(stage))
    if stage == "autoencoder":  # the decoder of another encoder would be taken for this one's
        shutil.rmtree(_final("decoder"), ignore_errors=True)
    figures = held_out_figures(stage)
    record = {"steps": plan.steps, "batch": plan.batch, "renders": renders, "seconds": round(trained.seconds)}
    (cache_folder("pocket") / stage / "figures.json").write_text(
        json.dumps({**record, "figures": figures}, indent=1) + "\n"
    )
    return figures


def held_out_figures(stage: str) -> Figures:
    """The figures of a finished stage on held-out scenes."""
    _finished(stage)
    data = load_renders("test", HELD_OUT)
    if stage in ("autoencoder", "decoder"):
        return autoencoder_figures(load_autoencoder(stage), load_judge(), data)
    if stage == "judge":
        return judge_figures(load_judge(), data)
    if stage == "clip":
        return clip_figures(*load_clip(), data)
    return sample_figures(load_pipeline(), load_judge(), min(HELD_OUT, 240), guidance=3.0)


def check_gates() -> None:
    """Refuse to go on to the UNet before what it inherits from is good enough.

    Raises:
        ValueError: a stage before it is not finished.
        RuntimeError: names the figures and their bars.
    """
    for stage in GATES:
        _finished(stage)
    short = [f"{stage}: {miss}" for stage, bars in GATES.items() for miss in missed(bars, held_out_figures(stage))]
    if short:
        raise RuntimeError(f"train longer before the UNet: {'; '.join(short)}. --past-gates trains it all the same")


def load_autoencoder(stage: str = "decoder") -> AutoencoderKL:
    """The finished autoencoder, as that stage left it."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(_finished(stage)).eval()


def load_judge() -> judge.Judge:
    """The finished judge, or the shipped one where none was trained here."""
    return judge.Judge.from_pretrained(_finished("judge"))


def load_clip() -> tuple[CLIPModel, CLIPTokenizer]:
    """The finished CLIP and its tokenizer, or the shipped ones where none was trained here."""
    from transformers import CLIPModel, CLIPTokenizer

    folder, words = _finished("clip"), _finished("clip").parent / "tokenizer"
    shipped = folder.parent == WEIGHTS
    tokenizer = CLIPTokenizer.from_pretrained(words) if shipped else clip.build_tokenizer(words)
    return CLIPModel.from_pretrained(folder).eval(), tokenizer


def load_pipeline() -> StableDiffusionPipeline:
    """The finished stages as a pipeline, in float32."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel.from_pretrained(_finished("unet")).eval()
    return unet.assemble(load_autoencoder(), *load_clip(), network)


def export(folder: Path) -> None:
    """Write the finished model as fp16 safetensors in the diffusers layout, with CLIP, the judge and checksums.

    The configurations say float32, so that stock libraries compute in it: on a CPU half precision fails.
    `training.json` holds the steps, batch, renders and seconds of each stage.
    """
    from transformers import CLIPImageProcessor

    network, tokenizer = load_clip()
    pipeline = load_pipeline().to(dtype=torch.float16)
    pipeline.save_pretrained(folder)
    network.half().save_pretrained(folder / "clip")
    side = {"height": 64, "width": 64}
    pictures = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pictures.save_pretrained(folder / "clip")
    for part in ("tokenizer", "clip"):
        tokenizer.save_pretrained(folder / part)
        for name in ("vocab.json", "merges.txt"):  # what older versions of transformers read
            source = _finished("clip").parent / "tokenizer" / name
            if source != folder / part / name:
                shutil.copy(source, folder / part / name)
    load_judge().save_pretrained(folder / "judge")
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text().replace('"float16"', '"float32"'))
        config.pop("_name_or_path", None)  # a folder of the machine that trained
        path.write_text(json.dumps(config, indent=2) + "\n")
    shipped = json.loads((WEIGHTS / "training.json").read_text())
    records = {stage: shipped[stage] if _finished(stage).parent == WEIGHTS else _record(stage) for stage in STAGES}
    (folder / "training.json").write_text(json.dumps(records, indent=1) + "\n")
    _write_checksums(folder)


def _record(stage: str) -> dict[str, int]:
    """The steps, batch, renders and seconds of a stage."""
    record = json.loads(_final(stage).with_name("figures.json").read_text())
    del record["figures"]
    return record


def _write_checksums(folder: Path) -> None:
    """Write SHA256SUMS as `sha256sum` does, and as `pocket.weights` reads it."""
    sums = folder / "SHA256SUMS"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != sums)
    rows = ((hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(folder).as_posix()) for path in files)
    sums.write_text("".join(f"{digest}  {name}\n" for digest, name in rows))


def _keep(save: Callable[[Path], None], final: Path) -> None:
    """Write a finished network so that its folder is either whole or not there."""
    partial = final.with_name("final.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)


def _final(stage: str) -> Path:
    return cache_folder("pocket") / stage / "final"


def _finished(stage: str) -> Path:
    if _final(stage).exists():
        return _final(stage)
    if stage in SHIPPED:
        return WEIGHTS / stage
    command = f"python -m msd_teach.pocket train --stage {stage}"
    raise ValueError(f"{stage} is not trained yet: no {_final(stage)}; run {command}")
