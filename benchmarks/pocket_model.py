"""The figures of the pocket model's card: measured from the shipped files, through stock libraries, in about half an hour.

Every section is kept in the cache; a killed run goes on there if it finds the same files, sizes, seeds and versions. From
`results/pocket.json`, which gathers them, the tables of `MODEL_CARD.md` are made; `samples.png` is drawn beside it.
Another edition is measured with `--folder` (its card and weights) and `--results`; kept as `results/pocket_before.json`,
or named by `--before`, its figures stand beside this one's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from _timing import best_times, machine, table
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from msd_teach.pocket import weights
from msd_teach.pocket.data import SEEDS
from msd_teach.pocket.evaluate import (
    BARS,
    CEILINGS,
    OPEN_SEED,
    PILOT_SEED,
    SAMPLE_SEED,
    Figures,
    card_figures,
    draw,
    load_pipeline,
)
from msd_teach.pocket.training import save_sheet
from msd_teach.pocket.world import COLOURS, KINDS, VIEWS, Prompt
from msd_teach.runs.records import RESULTS, Record, Table

ROOT = Path(__file__).parent.parent
BEFORE = RESULTS / "pocket_before.json"
SHEET, COLUMNS = "sample sheet", 10  # its rows are the kinds
NOT_SHOWN = ("low", "high", " error")  # in the table they stand beside their figures


# ---------------------------------------------------------------- measuring


def settings(folder: Path, samples: int, pictures: int) -> Record:
    """What the figures depend on; `folder` holds SHA256SUMS."""
    return {
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "digest": hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest(),
        "sizes": {"samples": samples, "pictures": pictures},
        "seeds": {"renders": SEEDS["test"], "prompts": SAMPLE_SEED, "pilot": PILOT_SEED, "open": OPEN_SEED, "noise": 0},
    }


def seconds(folder: Path) -> Figures:
    """How long one image takes through the stock pipeline, and on how many threads."""
    pipeline = load_pipeline(folder)
    best = best_times({"image": lambda: draw(pipeline, ["a red house, front view"], 3.0, steps=30)})
    return {"seconds": best["image"], "threads": torch.get_num_threads()}


# ---------------------------------------------------------------- the sheet of samples


def sheet_prompts() -> list[str]:
    """A kind a row, a view a column, and from each picture to the next another colour."""
    colours = list(COLOURS)
    return [
        str(Prompt(kind, colours[(row + column) % len(colours)], VIEWS[column % len(VIEWS)]))
        for row, kind in enumerate(KINDS)
        for column in range(COLUMNS)
    ]


def draw_sheet(folder: Path, path: Path) -> Figures:
    """Draw the sheet, and say how."""
    prompts, guidance, steps = sheet_prompts(), 3.0, 50
    save_grid(draw(load_pipeline(folder), prompts, guidance, steps) / 2 + 0.5, path)
    return {"pictures": len(prompts), "guidance": guidance, "steps": steps}


def save_grid(images: Tensor, path: Path) -> None:
    """Images (N, 3, H, W) in [0, 1] in rows of ten with gaps of 2 px, as a small file of 256 colours."""
    save_sheet(pad(images, (1, 1, 1, 1), value=1.0), COLUMNS, path)
    with Image.open(path) as page:
        page.quantize(256, Image.Quantize.FASTOCTREE).save(path, optimize=True)


# ---------------------------------------------------------------- the card


def verdict(section: str, name: str, value: float) -> tuple[str, str]:
    """The bar of a figure and whether it is reached, in words; both empty where there is none."""
    bars = {key.lower(): bars for key, bars in BARS.items()}
    low, high = bars.get(section.lower(), {}).get(name), CEILINGS.get(name)
    texts = [f"≥ {low:g}"] if low is not None else []
    texts += [f"≤ {high:g}"] if high is not None else []
    reached = (low is None or value >= low) and (high is None or value <= high)
    return ", ".join(texts), ("yes" if reached else "no") if texts else ""


def in_words(figures: Figures, name: str) -> str:
    """A figure with its standard error or interval, where it has one."""
    value = figures[name]
    if f"{name} error" in figures:
        return f"{value:.3f} ± {figures[f'{name} error']:.3f}"
    interval = f" ({figures['low']:.4g} to {figures['high']:.4g})" if name == "distance" else ""
    return f"{value:.4g}{interval}"


def figures_table(record: Record, before: Record | None = None) -> str:
    """Every figure beside that of an edition before, its bar, and whether it reaches it; and how they were measured."""
    old = {figures["of"]: figures for figures in before["rows"]} if before else {}
    rows: list[dict] = []
    for figures in record["rows"]:
        section = figures["of"]
        for name, value in figures.items():
            if section != SHEET and name != "of" and not name.endswith(NOT_SHOWN):
                bar, reached = verdict(section, name, value)
                row = {"of": section, "figure": name}
                if before:
                    row["edition before"] = in_words(old[section], name) if name in old.get(section, {}) else ""
                rows.append(row | {"measured": in_words(figures, name), "bar": bar, "reached": reached})
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    sizes = record["sizes"]
    return (
        f"{table(rows)}\n\n{2 * sizes['pictures']} held-out renders; {sizes['samples']} judged samples at each guidance;"
        f" {sizes['pictures']} samples in the Fréchet distance; DDIM with 50 steps. {versions};"
        f" {record['machine']['processor']}.\n"
        f"SHA-256 of the SHA256SUMS of the measured files: `{record['digest']}`"
        + (f"; of the edition before: `{before['digest']}`." if before else ".")
    )


def training_table(folder: Path) -> str:
    """Steps, batch, renders and seconds of each stage."""
    stages = json.loads((folder / "training.json").read_text())
    return table([{"stage": stage} | record for stage, record in stages.items()])


def checksums_table(folder: Path) -> str:
    """Every file with its size and checksum."""
    lines = (line.split(maxsplit=1) for line in (folder / "SHA256SUMS").read_text().splitlines())
    return table(
        [{"file": name, "bytes": (folder / name).stat().st_size, "SHA-256": f"`{digest}`"} for digest, name in lines]
    )


def filled(card: str, name: str, text: str) -> str:
    """The card with `text` between its markers of that name.

    Raises:
        ValueError: there are no such markers.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = card.partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"card has no {start} … {end}; put them where the table belongs")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"


def written(card: str, record: Record, folder: Path, before: Record | None = None) -> str:
    """The card with all three tables; `folder` holds training.json and SHA256SUMS.

    Raises:
        ValueError: the card lacks a pair of markers, or the edition before was measured in another way.
    """
    for key in ("sizes", "seeds"):
        if before and before[key] != record[key]:
            raise ValueError(f"the edition before was measured with {key} {before[key]}, this one with {record[key]}")
    card = filled(card, "figures", figures_table(record, before))
    card = filled(card, "training", training_table(folder))
    return filled(card, "checksums", checksums_table(folder))


def edition_before(path: Path | None = None) -> Record | None:
    """The record of the edition before: that file, or results/pocket_before.json if there is one."""
    if path is None and not BEFORE.exists():
        return None
    return json.loads((path or BEFORE).read_text("utf-8"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=1000, help="judged samples at each guidance")
    arguments.add_argument("--pictures", type=int, default=2000, help="samples in the Fréchet distance")
    arguments.add_argument("--folder", type=Path, default=ROOT / "msd_teach/pocket", help="of the card and the weights")
    arguments.add_argument("--results", type=Path, default=RESULTS, help="folder of pocket.json")
    arguments.add_argument("--before", type=Path, help="a record like it, of the edition before (pocket_before.json)")
    a = arguments.parse_args()
    folder, card, sheet = weights(a.folder / "weights"), a.folder / "MODEL_CARD.md", a.folder / "samples.png"
    sections = card_figures(folder, a.samples, a.pictures)
    sections |= {"30 guided steps, one image": lambda: seconds(folder), SHEET: lambda: draw_sheet(folder, sheet)}
    rows = [{"of": name} for name in sections]
    measured = Table("pocket", settings(folder, a.samples, a.pictures), lambda row: sections[row["of"]](), a.results)
    measured.fill(rows)
    command = shlex.join(["python", "benchmarks/pocket_model.py", *sys.argv[1:]])
    written_to = measured.write(rows, {"command": command, "machine": machine()})
    record = json.loads(written_to.read_text("utf-8"))
    card.write_text(written(card.read_text("utf-8"), record, folder, edition_before(a.before)), "utf-8")


if __name__ == "__main__":
    main()
