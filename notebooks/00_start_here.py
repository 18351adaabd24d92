# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""
# Start here

You will check that everything runs, see the whole book in one picture, and learn to read its signs.

*Reading and exercises: 15 minutes, 8 of them for the exercises. Computing: seconds at every budget, on two CPU cores. Before this: Python with PyTorch, and a diffusion model seen once, from afar.*

## What you'll learn

- verify your set-up with a number that is known in advance;
- describe the one interface that every model in this book offers;
- read the notation, the budgets, the folds and the exercises.

## What we build

A text-to-image model can draw a tulip. *Score distillation* makes a teacher of it: the model looks at the picture $x$ that we are optimising, perhaps rendered from a 3-D object, and says in which direction the picture becomes more likely. Mean-shift distillation ([Thamizharasan et al., 2025](https://arxiv.org/abs/2502.15989)) gives this advice by **mean shift**: look around $x$ at a scale λ, average what the model finds there, move to the average, and repeat with a smaller λ.

The average over a Gaussian neighbourhood has another name. It is what a **denoiser** returns: a function $D(z;\sigma)$ that is given a noisy point $z = y + \sigma n$ and answers with the mean of all clean points $y$ that could be behind it. *Whatever offers a denoiser can be climbed.* A formula has one, a training set has one, a neural network learns one.
"""

# %%
import os
import platform

import matplotlib
import numpy as np
import torch

from msd_teach import IdealDenoiser, fractal, guided
from msd_teach.lesson import budget, checks, figures
from msd_teach.lesson.budget import pick

figures.use_style()
generator = torch.Generator().manual_seed(0)

# %% [markdown]
r"""
**Predict.** Points start on a lattice. Twelve times each is replaced by its denoised self, while λ falls from .1 to .003. The density is a tree of a thousand thin Gaussians. Three denoisers are asked: the tree's own, that of 2000 samples of it, and one that is pushed away from a second tree (*guidance*, chapter 04). Where will each leave the points?
"""

# %%
tree, both = fractal("A"), fractal("AB")
samples = tree.sample(pick(smoke=200, laptop=2000), generator=generator)
denoisers = {
    "a formula": tree.denoise,
    f"{len(samples)} samples": IdealDenoiser(samples),
    "guided off tree B": guided(tree.denoise, both.denoise, scale=2.0),
}
start = figures.lattice(pick(smoke=9, laptop=27), span=1.5)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(["trees A and B, start", *denoisers], span=1.55)
figures.density(axes[0], both, pixels=200)
figures.points(axes[0], start, figures.RED, size=4)
for ax, denoise in zip(axes[1:], denoisers.values(), strict=True):
    x = start
    for λ in np.geomspace(0.1, 0.003, 12):
        x = denoise(x, λ)  # one step of mean shift
    ax.set(xlim=(-0.6, 1.45), ylim=(-0.62, 1.43))
    figures.density(ax, tree, pixels=200)
    figures.points(ax, x, figures.RED, size=6)
figures.show(
    fig,
    alt="Four views of the plane. First, a lattice of points over two trees drawn in "
    "ink. Then the points after twelve steps of mean shift under three denoisers of "
    "tree A: all on its branches; guidance thins out the trunk near the root, where "
    "tree B begins.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

On branches, all of them, though no two agree on where. The formula gathers the points at forks and along limbs; the samples show their own grain; guidance clears the lower half of the trunk, next to the root where the other tree begins.

</details>

The inner loop is one line, the same for all three. In chapter 08 it is the same for a text-to-image model.

### Break it: begin too wide

**Predict.** The same line, but λ falls from .3, and slowly, in 60 steps. How many places are reached now?
"""

# %% tags=["break-it"]
x = start
for λ in np.linspace(0.3, 0.003, pick(smoke=20, laptop=60)):
    x = tree.denoise(x, λ)
spread = (x - x.mean(0)).norm(dim=-1).max()
print(f"{len(x)} points; the farthest from their mean is {spread:.1e} away")

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

One. In a wide view the tree is a single hill, and once the points have met, nothing can part them.

</details>

What the line does, when to trust it and how to lower λ is what this book is about.

## Check your set-up

Versions and sizes first. Then a number that we know: for two points at −1 and +1, the mean of the clean point given a noisy $z$ is $\tanh(z/\sigma^2)$.
"""

# %% tags=["check"]
print(
    f"Python {platform.python_version()}, torch {torch.__version__}, numpy "
    f"{np.__version__}, matplotlib {matplotlib.__version__}"
)
print(
    f"budget: {budget.NAME}; {os.cpu_count()} cores; GPU: "
    f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}"
)

z = torch.linspace(-2, 2, 101, dtype=torch.float64)[:, None]
error = (
    (
        IdealDenoiser(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))(z, 0.7)
        - torch.tanh(z / 0.7**2)
    )
    .abs()
    .max()
)
print(f"two points: largest error {error:.1e}")
assert error < 1e-12

# %% [markdown]
r"""
If that printed an error near 1e-16, all is well. No chapter needs a GPU.

## How to read a chapter

| sign | meaning |
|---|---|
| Predict | a question to answer, even wrongly, before you look at what follows; compare with the fold *Answer* |
| a cell with a green rim | a **check**: a derived result against an identity or a closed form. It prints its error, and stops the notebook if that is too large |
| "Break it", a red rim | a knob turned too far, on purpose |
| the folds *Erratum*, *Misprint*, *Convention* | about the paper's text: an erratum changes results, a misprint does not, a convention is only another choice than ours |
| the fold *Aside* | worth knowing, needed nowhere |
| ★, ★★, ★★★ | an exercise, and how hard it is. Write your code in the stub; the checker prints *not yet*, says in one line what is wrong, or gives your error. The solution is folded away below |
| (8) | an equation of the paper, with its number there; ours carry their chapter, as in (M1.2) |

**The minutes at the head of a chapter** add up: 180 words a minute, three quarters of what people manage in ordinary prose ([Brysbaert, 2019](https://doi.org/10.1016/j.jml.2019.104047)), 45 seconds for a displayed equation, 5 for a line of code in sight, and the minutes of the exercises as they state them. Plotting code, solutions and asides are folded and not counted.

Sizes and numbers of steps come from `budget.pick(smoke=…, laptop=…, gpu=…)`. The environment variable `MSD_TEACH_BUDGET` chooses: `smoke` runs the tests in seconds, `laptop` made the published book on two cores, `gpu` uses larger sizes, the paper's where it gives them. A figure made at `smoke` says so in its corner.

## Notation

| symbol | code | meaning |
|---|---|---|
| $y$ | `y` | a clean sample, $y\sim p$ |
| $x$ | `x` | the point that is optimised: two numbers, or the latent of a rendered image |
| $z,\ \sigma$ | `z`, `sigma` | a noisy sample $z = y+\sigma n$, $n\sim\mathcal N(0,I)$, and its noise level |
| $p_\sigma$ | | the density of $z$: $p$ smoothed with $\mathcal N(0,\sigma^2I)$ |
| $D(z;\sigma)$ | `denoise(z, sigma)` | the denoiser, $\mathbb E[y\mid z]$ |
| $s(z;\sigma)$ | `score` | $\nabla\log p_\sigma(z) = (D(z;\sigma)-z)/\sigma^2$ |
| $\lambda$ | `bandwidth` | the **standard deviation** of the Gaussian kernel around $x$ |
| $m(x)$ | `x_next - x` | the mean-shift vector, $D(x;\lambda)-x$ |

Points have shape `(*batch, *event)`. A noise level or bandwidth is a number, or a tensor whose shape is a prefix of the points' shape. The plane is computed in float64.

## Exercises

### Exercise 0.1 · A denoiser by hand (★, 5 min)

Write the denoiser of the two points −1 and +1 yourself, for float64 tensors `z` of any shape: weigh each point by $e^{-|z-y|^2/2\sigma^2}$ and average. The checker also asks at σ = .02, where both exponentials can underflow to zero.
"""


# %% tags=["exercise"]
def two_point_denoiser(z, sigma):
    raise NotImplementedError  # your code


checks.two_point_denoiser(two_point_denoiser)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def two_point_denoiser(z, sigma):
    # The weights differ by the factor exp(2z/σ²): the mean is (e^a − e^−a)/(e^a + e^−a)
    # with a = z/σ², which tanh computes safely.
    return torch.tanh(z / sigma**2)


checks.two_point_denoiser(two_point_denoiser)

# %% [markdown]
r"""
### Exercise 0.2 · Whose bandwidth? (★, 3 min)

The paper's kernel is $e^{-|x|^2/\lambda_\text{paper}^2}$; ours is $e^{-|x|^2/2\lambda^2}$. Convert a number into a number.
"""


# %% tags=["exercise"]
def bandwidth_from_paper(theirs):
    raise NotImplementedError  # your code


checks.bandwidth_from_paper(bandwidth_from_paper)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def bandwidth_from_paper(theirs):
    return theirs / 2**0.5


checks.bandwidth_from_paper(bandwidth_from_paper)

# %% [markdown]
r"""
### Open task 0 · Your own density

Replace the tree by something of yours: `spiral()`, `pinwheel()`, or points drawn from a picture with `image_density(picture, 5000)` and given to `IdealDenoiser`. (The third panel also needs a second density, one to be guided away from.) Find a density on which the three panels differ as much as possible, and say why before you read on.

## Road map

| chapter | you can then | about |
|---|---|---|
| chapter 01 | explain why mean shift climbs, how fast, and where it ends | 1½ hours |
| chapter 02 | sample from data without training anything | 2 hours |
| chapter 03 | say what is wrong with SDS, with numbers | 1½ hours |
| chapter 04 | sample a density times a kernel, and check it against the exact answer | 2 hours |
| chapter 05 | choose a solver for that product, and know its error | 2 hours |
| chapter 06 | run the paper's algorithm in the plane, and judge it | 2 hours |
| chapter 07 | tell which errors come from learning | 1½ hours |
| chapter 08 | use a text-to-image model as a denoiser | 2 hours |

Planned: text-to-2D, text-to-3D, and every table of the paper beside ours.

## Take-aways

- Everything that offers $D(z;\sigma)=\mathbb E[y\mid z]$ can be climbed, by one line.
- Results in this book are checked against something known. When you change code, the checks will tell you.

## What's next

Chapter 01 derives that one line, and proves that it always goes up. The references of all chapters are on the page *References*.
"""
