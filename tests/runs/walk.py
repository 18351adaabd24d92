"""A run of four points over the fractal, as a function, and as a program to be killed: python walk.py FOLDER."""

import sys
import time
from pathlib import Path

import torch

from msd_teach import SDS, distill, fractal
from msd_teach.runs import run


def go(folder, steps=30, pause=0.0, seed=3, break_at=None):
    """The points and the last step; `pause` seconds a step, NaN at the optimiser step `break_at`."""
    p, g = fractal(), torch.Generator().manual_seed(seed)
    x = torch.linspace(-1, 1, 8).reshape(4, 2).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.08)

    def denoise(z, sigma):
        time.sleep(pause)
        broken = break_at is not None and x in optimizer.state and int(optimizer.state[x]["step"]) == break_at
        return z * torch.nan if broken else p.denoise(z, sigma)

    def start(done):
        return distill(lambda _: x, optimizer, denoise, SDS(), steps, generator=g, done=done)

    def draw(path):
        path.write_text(str(x.tolist()))

    settings = {"steps": steps, "seed": seed, "method": repr(SDS())}
    parts = {"x": x, "optimizer": optimizer, "generator": g}
    last = run.follow(folder, settings, start, steps, parts, draw, checkpoint_every=5, draw_every=10)
    return x.detach(), last


if __name__ == "__main__":
    go(Path(sys.argv[1]), pause=0.02)
