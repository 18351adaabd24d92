"""Figures that take hours: each computed once, kept in the cache, and gathered into a JSON file."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch

from ..files import cache_folder, whole
from ..tensors import at_least_one

Record = dict[str, Any]
PACKAGE = Path(__file__).parents[1]
RESULTS = (
    PACKAGE / "results" if (PACKAGE / "results").is_dir() else PACKAGE.parent / "results"
)  # installed, or a checkout


def read(name: str) -> Record:
    """A stored table or measurement by its name, such as "table2"; what the paper prints is "paper".

    Raises:
        ValueError: no such name.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise ValueError(
            f"name is {name!r}; it may be one of {', '.join(sorted(p.stem for p in RESULTS.glob('*.json')))}"
        )
    return _read(path)


def place(kind: str, key: Any) -> Path:
    """The cache file of a record: `key` is all that it depends on, in JSON's types."""
    text = json.dumps([kind, _plain(key)], ensure_ascii=False)
    return cache_folder("records") / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def cached(kind: str, key: Any, compute: Callable[[], Record]) -> Record:
    """The record of this key, computed unless the cache has it; a killed run loses only the record in the making.

    Raises:
        ValueError: a damaged file (names it), or one that cannot be written.
    """
    path = place(kind, key)
    if not path.exists():
        text = json.dumps(_plain(compute()), ensure_ascii=False, allow_nan=False)
        with whole(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return _read(path)


@dataclass(frozen=True)
class Table:
    """Rows that take long, each computed once, kept in the cache as a file of its own, and gathered in folder/name.json.

    A row is asked for by its fields, such as {"density": "spiral", "seed": 0}; `compute` gives its figures, of which
    those that are not finite become null. `settings` are all else that these depend on: they head the file, and what
    was computed under others does not count.
    """

    name: str
    settings: Record
    compute: Callable[[Record], Record]
    folder: Path = RESULTS

    def stored(self) -> list[Record]:
        """The rows of the file, if it is of these settings."""
        file = _read(self._path) if self._path.exists() else {}
        same = all(file.get(name) == value for name, value in _plain(self.settings).items())
        return file["rows"] if same and file else []

    def fill(self, asked: Sequence[Record], share: tuple[int, int] = (0, 1)) -> None:
        """Computes what neither file nor cache has of every world-th row from `rank` on; `share` is (rank, world).

        Processes that share the cache, on however many machines, can so share the rows. A row that meets NaN is not
        asked again: what its record holds is why it "stopped".

        Raises:
            ValueError: not 0 <= rank < world, or a file that is damaged or cannot be written; names it.
        """
        rank, world = share
        if not 0 <= rank < world:
            raise ValueError(f"share is {share}; it must be (rank, world) with 0 <= rank < world")
        stored = self.stored()
        wanted = [row for row in asked[rank::world] if self._found(row, stored) is None]
        for count, row in enumerate(wanted, start=1):
            said = ", ".join(f"{name} {value}" for name, value in row.items())
            print(f"{self.name} {count}/{len(wanted)}: {said}", flush=True)
            cached(self.name, [row, self.settings], lambda row=row: row | self._computed(row))

    def gather(self, asked: Sequence[Record]) -> list[Record]:
        """What cache or file has of the rows asked for, and then the other rows of the file."""
        stored = self.stored()
        found = [record for row in asked if (record := self._found(row, stored)) is not None]
        return found + [record for record in stored if not any(select([record], **row) for row in asked)]

    def write(self, asked: Sequence[Record], about: Record) -> Path:
        """Gathers the rows into the file, under `about`, the settings, and the number of those asked for that it lacks."""
        rows = self.gather(asked)
        missing = sum(not select(rows, **row) for row in asked)
        write(self._path, about | {"missing": missing} | self.settings, rows)
        return self._path

    def _computed(self, row: Record) -> Record:
        try:
            return self.compute(row)
        except FloatingPointError as error:
            return {"stopped": str(error)}

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.json"

    def _found(self, row: Record, stored: Sequence[Record]) -> Record | None:
        path = place(self.name, [row, self.settings])
        return _read(path) if path.exists() else next(iter(select(stored, **row)), None)


def write(path: Path, about: Record, rows: Sequence[Record]) -> None:
    """Writes `about`, the commit, the machine, the versions (unless `about` has them) and the rows, one a line."""
    made = {
        "commit": commit(),
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    head = json.dumps(_plain(about | (made | about)), indent=1, ensure_ascii=False, allow_nan=False)[:-2]
    lines = ",\n".join("  " + json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) for row in rows)
    with whole(path) as partial:
        partial.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def select(rows: Sequence[Record], **wanted: Any) -> list[Record]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def summary(rows: Sequence[Record], figure: str) -> tuple[float, float]:
    """Mean of a figure over rows (seeds), and its standard error; NaN where a figure is null, or the row alone.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError(f"rows is empty; it must hold a row for the mean of {figure!r}")
    found = [math.nan if row[figure] is None else row[figure] for row in rows]
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def difference(rows: Sequence[Record], others: Sequence[Record], comparisons: int = 1) -> tuple[float, float]:
    """By how much the "frechet" of rows exceeds that of others, and half the width of its 95 % interval.

    Rows pair by "seed"; their "resampled" must be distances of the same resamplings (`measure.images.resamplings`), over
    whose paired differences the interval is taken. It holds for so many comparisons together (Bonferroni). It is that
    of a normal distribution, since the tails of a few hundred resamplings do not reach as far.

    Raises:
        ValueError: no seed in common, other numbers of resamplings, comparisons that are not 1, 2, …
    """
    at_least_one("comparisons", comparisons)
    pairs = [(row, other) for row in rows for other in others if row["seed"] == other["seed"]]
    found = [[[row["frechet"], *row["resampled"]] for row in pair] for pair in pairs]
    lengths = {len(values) for pair in found for values in pair}
    if len(lengths) != 1 or min(lengths) < 3:
        raise ValueError(
            f"rows, others are {len(rows)} and {len(others)} rows with {len(pairs)} seeds in common, and their resampled"
            f" hold {sorted(n - 1 for n in lengths)} distances; they must share a seed, and the same resamplings"
        )
    values = torch.tensor(found, dtype=torch.float64)  # (pairs, 2, 1 + resamplings)
    value, again = (values[:, 0] - values[:, 1]).mean(0).split([1, values.shape[2] - 1])
    return value.item(), NormalDist().inv_cdf(1 - 0.025 / comparisons) * again.std().item()


def commit() -> str:
    """The commit of the working tree, with "-dirty" if the package differs from it; empty outside of one."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=30
            ).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return ""

    if not git("ls-files", "runs/records.py"):
        return ""
    return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ".") else "")


def _plain(value: Any) -> Any:
    """The value in JSON's types, numbers of numpy and torch too; JSON has none that is not finite, so null."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> Record:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path} is damaged ({error}); delete it to have it computed anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a record; delete it to have it computed anew")
    return found
