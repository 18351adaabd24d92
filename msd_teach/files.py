"""Where trained networks, renders and table rows are kept between runs; files written whole, and checkpoints."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import torch
from torch import Tensor


def cache_folder(name: str) -> Path:
    """A folder of that name in ~/.cache/msd_teach, or in what the environment variable MSD_TEACH_CACHE names."""
    return Path(os.environ.get("MSD_TEACH_CACHE") or "~/.cache/msd_teach").expanduser() / name


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end: the file is whole or not there, even after a kill.

    Raises:
        ValueError: a folder that cannot be written to, or a full disk; names the path.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")  # no other node on a shared disk has this name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror or error}; make room for it, or choose another folder"
            " (MSD_TEACH_CACHE puts the cache elsewhere)"
        ) from error
    finally:
        if partial.exists():
            partial.unlink()


def save_atomically(value: object, path: Path) -> None:
    """Writes what `load` reads, whole or not at all.

    Raises:
        ValueError: a value that only unpickling could read again, or a path that cannot be written to.
    """
    with whole(path) as partial:
        try:
            with partial.open("wb") as file:
                torch.save(value, file)
        except RuntimeError as error:  # so torch calls a write that failed
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"value for {path} cannot be kept: {error}") from error
        if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(partial):
            raise ValueError(f"value for {path} holds {', '.join(foreign)}; it may hold tensors, numbers and strings")


def load(path: Path) -> Any:
    """What `save_atomically` wrote, with its tensors on the CPU; nothing in the file is run.

    Raises:
        ValueError: a damaged file; names it, and says that it may be deleted.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:  # torch reads past a flipped bit without a word
                if broken := archive.testzip():
                    raise ValueError(f"{broken} fails its checksum")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises six kinds, by the byte at which the damage begins
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{path} is damaged ({said}); delete it to start anew") from error


class Stateful(Protocol):
    """A network, an optimiser, a method with a memory."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoint:
    """All that a run needs in order to go on, in one file that knows the settings it belongs to.

    `identity` holds every setting on which the result depends, in JSON's types (a dataclass as its `repr`); `parts`
    are what the run changes: networks, optimisers, methods with a state, tensors, `torch.Generator`s.

    Raises:
        ValueError: a part that has no state to keep, an identity beyond JSON's types, or one that names a lambda.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        **parts: Stateful | Tensor | torch.Generator,
    ):
        for name, part in parts.items():
            stateful = hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
            if not stateful and not isinstance(part, Tensor | torch.Generator):
                raise ValueError(f"{name} is {part!r}; it must be a tensor, a generator, or have a state_dict")
        self.path, self.parts = Path(path), parts
        self.identity = {name: _as_json(name, value) for name, value in identity.items()}
        for name, said in self.identity.items():
            if "<lambda>" in said:
                raise ValueError(f"{name} is {said}; a lambda does not say what it does: give a function with a name")

    def save(self, **numbers: float | str | None) -> None:
        """Writes the state of every part, and numbers such as the step.

        Raises:
            ValueError: numbers beyond JSON's types, or a path that cannot be written to.
        """
        states = {name: _state(part) for name, part in self.parts.items()}
        said = {name: json.loads(_as_json(name, value)) for name, value in numbers.items()}
        save_atomically({"identity": self.identity, "numbers": said, "parts": states}, self.path)

    def load(self) -> dict[str, Any] | None:
        """Puts every part back into its state; the numbers, or None where there is no file yet.

        Raises:
            ValueError: a damaged file, one of other settings (names them), or of other parts.
        """
        if not self.path.exists():
            return None
        kept = load(self.path)
        if not isinstance(kept, dict) or kept.keys() != {"identity", "numbers", "parts"}:
            raise ValueError(f"{self.path} is no checkpoint, or one of an older version; delete it to start anew")
        old, new = kept["identity"], self.identity
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            said = ", ".join(f"{name} was {old.get(name)} and is {new.get(name)}" for name in changed)
            raise ValueError(f"checkpoint {self.path} is of other settings: {said}; delete it to start anew")
        if kept["parts"].keys() != self.parts.keys():
            raise ValueError(f"checkpoint {self.path} has the parts {', '.join(kept['parts'])}; delete it")
        for name, part in self.parts.items():
            try:
                _restore(part, kept["parts"][name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # each part has its own
                raise ValueError(f"checkpoint {self.path} is of another {name}; delete it to start anew") from error
        return kept["numbers"]


def _state(part: Stateful | Tensor | torch.Generator) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.detach() if isinstance(part, Tensor) else part.state_dict()


@torch.no_grad()
def _restore(part: Stateful | Tensor | torch.Generator, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, Tensor):
        if (part.shape, part.dtype) != (state.shape, state.dtype):
            raise ValueError(f"shape {tuple(state.shape)}, {state.dtype}")
        part.copy_(state)
    else:
        part.load_state_dict(state)


def _as_json(name: str, value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}; it must be of JSON's types") from error
