"""Draws the picture of the README and the front page: `python book/hero.py` writes book/static/hero.png."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from msd_teach import MeanShift, distill, fractal
from msd_teach.lesson.figures import BLUE, RED, density, lattice, paths, planes, points
from msd_teach.schedules import geometric

mixture = fractal("AB")
x = lattice(19, span=1.35).requires_grad_()
optimizer = torch.optim.SGD([x], lr=0.25 * len(x))  # a quarter of the mean-shift vector at each step
states = [x.detach().clone()]
for _ in distill(lambda _: x, optimizer, mixture.denoise, MeanShift(geometric(0.12, 0.003)), steps=120):
    states.append(x.detach().clone())

titles = ("a density, and where points start", "mean shift, its bandwidth annealed", "where they end: modes")
fig, (left, middle, right) = planes(titles, span=1.45, width=10.5)
for ax in (left, middle, right):
    density(ax, mixture, pixels=400)
points(left, states[0], RED, size=11, alpha=0.9)
paths(middle, states, BLUE, linewidth=0.6, alpha=0.7)
points(right, states[-1], BLUE, size=11, alpha=0.9)
fig.savefig(Path(__file__).parent / "static" / "hero.png", dpi=130)
plt.close(fig)
gained = mixture.log_prob(states[-1]).mean() - mixture.log_prob(states[0]).mean()
print(f"log p rose by {gained:.0f} nats on average")
