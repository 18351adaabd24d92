"""A run of `distill` as a folder: settings, a line of metrics for each step, pictures, a checkpoint to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distill import StepInfo
from ..files import Checkpoint, Stateful, whole
from ..tensors import at_least_one
from .records import Record

SETTINGS, METRICS, CHECKPOINT, RESULT, PREVIEWS = (
    "settings.json", "metrics.jsonl", "checkpoint.pt", "result.png", "previews",
)  # fmt: skip

COLUMNS = 8  # of a sheet of pictures


def follow(
    folder: str | os.PathLike[str],
    settings: Record,
    start: Callable[[StepInfo | None], Iterator[StepInfo]],
    total: int,
    parts: Mapping[str, Stateful | Tensor | torch.Generator],
    draw: Callable[[Path], None],
    checkpoint_every: int = 50,
    draw_every: int = 100,
) -> StepInfo:
    """Takes all steps of a run, or those that are missing, and gives the last.

    `start(done)` begins the steps after the record `done`, as `distill(…, done=done)` does; `parts` are all that they
    change, as for `Checkpoint`; `settings` (JSON's types) are all that the run depends on. `draw(path)` makes a picture
    of the state, for previews and at the end for the result, whose file says that the run is finished.

    A run that was killed, at whatever moment, is called again with the same arguments: it goes on at its last checkpoint
    and ends where it would have ended, and so do its metrics and previews, but for the seconds.

    Raises:
        ValueError: a folder of other settings (names them), one that is damaged, cannot be written to, or in use by
            another process; what `distill` refuses.
        FloatingPointError: a step is not finite; the last checkpoint is from before it, and the message says of when.
    """
    for name, count in (("total", total), ("checkpoint_every", checkpoint_every), ("draw_every", draw_every)):
        at_least_one(name, count)
    folder = Path(folder)
    _claim(folder, settings)
    with _alone(folder):
        checkpoint = Checkpoint(folder / CHECKPOINT, settings, **parts)
        kept = checkpoint.load()
        info = saved = None if kept is None else StepInfo(**kept)
        if info is not None and (folder / RESULT).exists():
            return info
        first = 0 if info is None else info.step + 1
        _cut(folder / METRICS, first)
        with _bar(folder.name, first, total) as bar:
            try:
                for info in start(saved):
                    _append(folder / METRICS, info)
                    bar.update()
                    bar.set_postfix_str(_said(info), refresh=False)
                    # the picture before the checkpoint: what that has passed is not drawn again
                    if (info.step + 1) % draw_every == 0:
                        _picture(draw, folder / PREVIEWS / f"{info.step + 1:06d}.png")
                    if (info.step + 1) % checkpoint_every == 0:
                        checkpoint.save(**info._asdict())
                        saved = info
            except FloatingPointError as error:
                kept_is = "there is no checkpoint yet"
                if saved is not None:
                    kept_is = f"{checkpoint.path} is good, of step {saved.step}"
                raise FloatingPointError(f"{error}; {kept_is}; try a lower rate or scale, in a new folder") from error
        if info is None:
            raise ValueError(f"{folder} has no step to take; stop_level ends the run before its first")
        if info is not saved:
            checkpoint.save(**info._asdict())
        _picture(draw, folder / RESULT)
        return info


def metrics(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """What `follow` wrote of each step: a column of float64 under the name of each field of `StepInfo`.

    Raises:
        ValueError: no run in this folder, or one whose metrics are damaged.
    """
    path = Path(folder) / METRICS
    if not path.exists():
        raise ValueError(f"folder is {os.fspath(folder)!r}; it must be that of a run, with {METRICS}")
    rows = _lines(path)
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in StepInfo._fields}


def settings_of(folder: str | os.PathLike[str]) -> Record:
    """The settings of the run in this folder.

    Raises:
        ValueError: no run in this folder, or damaged settings.
    """
    path = Path(folder) / SETTINGS
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"folder is {os.fspath(folder)!r}; it must be that of a run, with {SETTINGS}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder to start anew") from error


def _claim(folder: Path, settings: Record) -> None:
    """Writes the settings into a new folder, or compares them with those of an old one."""
    said: Record = json.loads(json.dumps(settings))
    if not (folder / SETTINGS).exists():
        others = (
            [path.name for path in folder.iterdir() if not path.name.endswith(".partial")] if folder.is_dir() else []
        )
        if others:
            raise ValueError(
                f"folder {folder} holds {', '.join(sorted(others)[:3])} and no {SETTINGS}; name an empty one"
            )
        with whole(folder / SETTINGS) as partial:
            partial.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    old = settings_of(folder)
    changed = [name for name in {**old, **said} if old.get(name) != said.get(name)]
    if changed:
        differences = ", ".join(f"{name} was {old.get(name)!r} and is {said.get(name)!r}" for name in changed)
        raise ValueError(f"folder {folder} is of other settings: {differences}; name another folder, or delete it")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuses a folder in which another process is at work, where files can be locked; a kill gives it free."""
    with (folder / SETTINGS).open() as file:
        try:
            import fcntl  # not on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"folder {folder} is in use by another process; wait for it, or name another folder"
            ) from error
        except (ImportError, OSError):  # nor on every network's disk
            pass
        yield


def _said(info: StepInfo) -> str:
    return f"loss {info.loss:.3g}, level {info.level:.3g}, |m| {info.shift_norm:.3g}, calls {info.calls}"


def _append(path: Path, info: StepInfo) -> None:
    """Writes the line of a step."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(info._asdict()) + "\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}; make room for it") from error


def _cut(path: Path, count: int) -> None:
    """Leaves the first `count` lines: those after them are of steps that will be taken again."""
    rows = _lines(path)[:count] if path.exists() else []
    if len(rows) < count:
        raise ValueError(f"{path} has {len(rows)} lines and the checkpoint is of step {count}; delete the folder")
    with whole(path) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics; a last one that a kill left half written does not count."""
    text = path.read_text("utf-8")
    try:
        return [json.loads(line) for line in text.split("\n")[:-1]]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the folder to start anew") from error


def _picture(draw: Callable[[Path], None], path: Path) -> None:
    with whole(path) as partial:
        draw(partial)


def _bar(name: str, first: int, total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=first, desc=name, mininterval=1)
