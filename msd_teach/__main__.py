"""`msd-teach chapters | lab | tables | study | text-to-2d | sweep | report | text-to-3d | export`: the book, its tables,
images and objects from prompts."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from .lesson import copies
from .runs import latents, records, report, run, table3, tables, text_to_2d, text_to_3d
from .runs.text_to_2d import TextTo2D
from .runs.text_to_3d import TextTo3D

STUDIES = {
    "latents": (latents.table, latents.rows),
    "tuning": (partial(table3.table, "tuning"), table3.tuning_rows),
    "table3": (partial(table3.table, "table3"), table3.table3_rows),
}


def share(text: str) -> tuple[int, int]:
    """(1, 4) from "1/4"."""
    rank, world = map(int, text.split("/"))
    return rank, world


def main() -> None:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(prog="msd-teach", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    copying = commands.add_parser("chapters", help="copy the chapters into a folder, as notebooks")
    opening = commands.add_parser(
        "lab", help="copy what is missing of them and open JupyterLab, which gets other options"
    )
    for command in (copying, opening):
        command.add_argument("folder", type=Path, nargs="?", default=Path("msd_teach_chapters"), help="%(default)s")
    making = commands.add_parser("tables", help="compute what is missing of Tables 1 and 2, then write results/")
    making.add_argument(
        "--budget", choices=tables.SIZES, default="laptop", help="gpu: the paper's sample sizes, a day on two cores"
    )
    making.add_argument("--table", choices=tables.ROWS, action="append", help="only this one")
    making.add_argument("--denoiser", choices=("ideal", "learned"), action="append", help="only this one")
    making.add_argument("--folder", type=Path, help="where the JSON goes; default: results, for smoke executed/smoke")
    studying = commands.add_parser(
        "study", help="compute what is missing of a study (docs/studies.md), then write results/"
    )
    studying.add_argument("name", choices=STUDIES)
    for command in (making, studying):
        command.add_argument(
            "--share",
            type=share,
            default=(0, 1),
            help="1/4: every fourth row, for the second of four that share a cache",
        )
    drawing = commands.add_parser("text-to-2d", help="distil an image for each prompt, in a folder that keeps the run")
    drawing.add_argument("prompts", nargs="+", metavar="PROMPT")
    drawing.add_argument("--out", type=Path, required=True, help="folder of the run; one that was killed goes on there")
    drawing.add_argument("--method", choices=text_to_2d.METHODS, default=TextTo2D.method)
    drawing.add_argument("--seed", type=int, default=TextTo2D.seed)
    sweeping = commands.add_parser(
        "sweep", help="text-to-2d for a file of prompts, methods and seeds; shared by processes under accelerate launch"
    )
    sweeping.add_argument("prompts", type=Path, help="a file with a prompt a line")
    sweeping.add_argument("--out", type=Path, required=True, help="folder of all runs; finished ones are not repeated")
    sweeping.add_argument("--methods", nargs="+", choices=text_to_2d.METHODS, default=list(text_to_2d.METHODS))
    sweeping.add_argument("--seeds", type=int, default=1, help="how many")
    for command in (drawing, sweeping):
        command.add_argument("--image", choices=text_to_2d.GENERATORS, default=TextTo2D.image, help="what is optimised")
        command.add_argument("--steps", type=int, default=TextTo2D.steps, help="of Adam")
        command.add_argument("--rate", type=float, help="of Adam")
        command.add_argument("--scale", type=float, default=TextTo2D.scale, help="s of u + s (c - u)")
        command.add_argument("--model", default=TextTo2D.model, help="pocket, stable-diffusion, an id or a folder")
    reporting = commands.add_parser("report", help="judge the finished runs below a folder, a row for each setting")
    reporting.add_argument("folder", type=Path)
    modelling = commands.add_parser(
        "text-to-3d", help="distil an object, in a folder that keeps the run, and export it"
    )
    modelling.add_argument("prompt")
    modelling.add_argument(
        "--out", type=Path, required=True, help="folder of the run; one that was killed goes on there"
    )
    modelling.add_argument("--budget", choices=text_to_3d.BUDGETS, default="laptop")
    modelling.add_argument("--method", choices=text_to_2d.METHODS, default=TextTo3D.method)
    modelling.add_argument("--steps", type=int, help="of Adam; default: the budget's")
    modelling.add_argument("--scale", type=float, default=TextTo3D.scale, help="s of u + s (c - u)")
    modelling.add_argument("--seed", type=int, default=TextTo3D.seed)
    modelling.add_argument("--model", default=TextTo3D.model, help="pocket, stable-diffusion, an id or a folder")
    exporting = commands.add_parser("export", help="write the object of a run as a mesh, or as a turntable")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("--format", choices=[e[1:] for e in text_to_3d.FORMATS], default="glb")
    options, others = parser.parse_known_args()
    if others and options.command != "lab":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.jupyter = others
    todo = {"chapters": copy, "lab": open_lab, "text-to-2d": draw, "sweep": sweep, "report": judge}
    todo |= {"text-to-3d": distil_object, "export": export, "study": study, "tables": fill}
    todo[options.command](options)


def copy(options: argparse.Namespace) -> None:
    """Copies the chapters, and says what comes next."""
    try:
        written = copies.copy_chapters(options.folder)
    except ModuleNotFoundError as error:
        sys.exit(f'{error}. The chapters need more than the library: pip install "msd_teach[notebooks,diffusion]"')
    print(f"{len(written)} chapters are new in {options.folder}; what was there stays as it is")
    if options.command == "chapters":
        print(f"Next: msd-teach lab {options.folder}")


def open_lab(options: argparse.Namespace) -> None:
    """JupyterLab on a folder of chapters, until it is stopped."""
    copy(options)
    from jupyterlab.labapp import LabApp

    folder, root = options.folder.resolve(), hasattr(os, "geteuid") and os.geteuid() == 0
    first = ["--LabApp.default_url=/lab/tree/00_start_here.ipynb", *(["--allow-root"] if root else [])]
    LabApp.launch_instance([f"--ServerApp.root_dir={folder}", *first, *options.jupyter])


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a run and a sweep of text-to-2D have in common."""
    return {name: getattr(options, name) for name in ("image", "steps", "rate", "scale", "model")}


def draw(options: argparse.Namespace) -> None:
    """Carries out a run of text-to-2D, and says where its picture is."""
    task = TextTo2D(tuple(options.prompts), options.method, seed=options.seed, **settings(options))
    task.carry_out(options.out)
    print(options.out / run.RESULT)


def sweep(options: argparse.Namespace) -> None:
    """Carries out this process's share of a sweep."""
    prompts = [line.strip() for line in options.prompts.read_text("utf-8").splitlines() if line.strip()]
    runs = text_to_2d.sweep(prompts, options.methods, options.seeds, **settings(options))
    text_to_2d.carry_out(runs, options.out, text_to_2d.place(os.environ), text_to_2d.device_of(os.environ))


def judge(options: argparse.Namespace) -> None:
    """Prints what the runs below a folder came to, and keeps it there."""
    rows = report.report(options.folder)
    for row in rows:
        print(
            ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    records.write(options.folder / "report.json", {}, rows)


def distil_object(options: argparse.Namespace) -> None:
    """Carries out a run of text-to-3D after saying what it takes, and writes its mesh and its turntable."""
    chosen = text_to_3d.BUDGETS[options.budget] | ({"steps": options.steps} if options.steps else {})
    task = TextTo3D(
        options.prompt, options.method, scale=options.scale, seed=options.seed, model=options.model, **chosen
    )
    print(f"{options.prompt}: {task.forecast()}, {task.steps} steps", flush=True)
    task.carry_out(options.out)
    for ending in (".webp", ".glb"):
        print(text_to_3d.export(options.out, ending))


def export(options: argparse.Namespace) -> None:
    """Writes the object of a run, and says where."""
    print(text_to_3d.export(options.folder, f".{options.format}"))


def study(options: argparse.Namespace) -> None:
    """Computes what is missing of a study, and writes it."""
    make, rows_of = STUDIES[options.name]
    table, rows = make(folder=Path("results")), [row._asdict() for row in rows_of()]
    table.fill(rows, options.share)
    print(table.write(rows, {"command": f"python -m msd_teach study {options.name}"}))


def fill(options: argparse.Namespace) -> None:
    """Computes what is missing of the tables, and writes them."""
    sizes = tables.SIZES[options.budget]
    folder = options.folder or Path("executed/smoke" if options.budget == "smoke" else "results")
    for name in options.table or tables.ROWS:
        table, rows = tables.table(name, sizes, folder), tables.ROWS[name](options.budget)
        chosen = [row._asdict() for row in rows if row.denoiser in (options.denoiser or [row.denoiser])]
        table.fill(chosen, options.share)
        command = f"python -m msd_teach tables --budget {options.budget}"
        print(table.write([row._asdict() for row in rows], {"command": command}))


if __name__ == "__main__":
    main()
