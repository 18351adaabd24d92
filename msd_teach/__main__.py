"""`python -m msd_teach tables`: compute Tables 1 and 2 of the paper and write them as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from .runs import tables


def share(text: str) -> tuple[int, int]:
    """(1, 4) from "1/4"."""
    rank, world = map(int, text.split("/"))
    return rank, world


def main() -> None:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m msd_teach", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("tables", help="compute what is missing of Tables 1 and 2, then write results/")
    making.add_argument(
        "--budget", choices=tables.SIZES, default="laptop", help="gpu: the paper's sample sizes, a day on two cores"
    )
    making.add_argument("--table", choices=tables.ROWS, action="append", help="only this one")
    making.add_argument("--denoiser", choices=("ideal", "learned"), action="append", help="only this one")
    making.add_argument(
        "--share", type=share, default=(0, 1), help="1/4: every fourth row, for the second of four that share a cache"
    )
    making.add_argument("--folder", type=Path, help="where the JSON goes; default: results, for smoke executed/smoke")
    options = parser.parse_args()
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
