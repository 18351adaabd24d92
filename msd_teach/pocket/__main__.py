"""`python -m msd_teach.pocket train | export`: make the pocket model."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import WEIGHTS
from .train import STAGES, export, train


def main() -> None:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m msd_teach.pocket", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train all stages, or one, each from its last checkpoint")
    training.add_argument("--stage", choices=STAGES, action="append", help="only this one (repeat for several)")
    training.add_argument("--steps", type=int, help="steps instead of the stage's own number")
    training.add_argument("--renders", type=int, help="training pictures instead of the stage's own number")
    training.add_argument(
        "--past-gates", action="store_true", help="train the UNet even if the stages before it fall short"
    )
    training.add_argument(  # not --start, which torchrun would take for an abbreviation of its own
        "--weights", type=Path, help="the folder of an autoencoder that it, or its decoder, begins from"
    )
    exporting = commands.add_parser("export", help="write the finished stages as a Stable Diffusion folder in fp16")
    exporting.add_argument("--folder", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    if options.command == "export":
        export(options.folder)
    else:
        for stage in options.stage or STAGES:
            figures = train(stage, options.steps, options.renders, options.past_gates, options.weights)
            print(stage, " ".join(f"{name} {value:.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
