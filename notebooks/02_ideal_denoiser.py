# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""
# Denoise without training anything

You will build the best denoiser that a training set allows, recognise it as the mean shift of chapter 01, and drive a complete diffusion sampler with it, from the plane to images of digits.

*Reading and exercises: 110 minutes, 60 of them for the exercises. Computing: about half a minute on two CPU cores. Before this: chapter 01.*
"""

# %% [markdown]
r"""
## What you'll learn

- derive Tweedie's formula, and with it the ideal denoiser of a training set;
- show in one line of algebra, and to 15 digits, that this denoiser **is** mean shift and **is** an attention read;
- derive the probability-flow ODE, recognise DDIM as its Euler step, and measure the order of a solver against an exact solution;
- predict where samples of the ideal denoiser land, how far from the training data, and why;
- tell a sampler's error from a denoiser's error, and from rounding.
"""

# %%
import math

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import scaled_dot_product_attention

from msd_teach import (
    GaussianMixture,
    IdealDenoiser,
    eight_gaussians,
    fractal,
    invert,
    karras_sigmas,
    sample,
)
from msd_teach.lesson import checks, figures
from msd_teach.lesson.budget import pick
from msd_teach.lesson.explore import explore

figures.use_style()

# %% [markdown]
r"""
## Noise is a blur of the density

A diffusion model never sees clean data. It sees $z = y + \sigma n$, a datum $y \sim p$ with Gaussian noise of standard deviation $\sigma$ on top. Independent terms that add make densities that convolve, so

$$p_\sigma(z) = \int p(y)\, \mathcal N(z;\, y, \sigma^2 I)\, \mathrm dy = (p * \mathcal N(0, \sigma^2 I))(z). \tag{M2.1}$$

If all we have of $p$ is a training set $y_1, \dots, y_M$, then $p = \frac1M\sum_i \delta(y - y_i)$ and $p_\sigma = \frac1M \sum_i \mathcal N(z; y_i, \sigma^2 I)$. This is the kernel density estimate of chapter 01, and the noise level has taken the place of the bandwidth.

**Predict.** Below are 400 points of a fractal whose branches are about 0.03 wide. Which comes first as $\sigma$ grows: do the branches vanish, or does the cloud become round?
"""

# %%
generator = torch.Generator().manual_seed(2)
p = fractal("AB")
data = p.sample(400, generator=generator)
speck = 1e-8 * torch.eye(2).expand(len(data), 2, 2)
empirical = GaussianMixture(
    torch.ones(len(data)), data, speck
)  # the training set as a density

levels = (0.0, 0.04, 0.15, 0.6)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes([f"σ = {sigma:g}" for sigma in levels], rows=1)
for ax, sigma in zip(axes, levels, strict=True):
    noisy = data + sigma * torch.randn(
        data.shape, dtype=data.dtype, generator=generator
    )
    if sigma:
        figures.density(ax, empirical, sigma, pixels=120)
    figures.points(
        ax, noisy, figures.RED if sigma else figures.BLACK, size=3, alpha=0.6
    )
figures.show(
    fig,
    alt="Four views of 400 points of a branching fractal. Without noise the branches "
    "are sharp. At σ = 0.04 twigs merge, at 0.15 only two trunks are left, at 0.6 a "
    "round cloud. In ink behind the noisy points, the kernel density of the clean "
    "ones.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The branches vanish first: twigs, then trunks, then the cloud becomes round.

</details>

Each level of $\sigma$ keeps the structure that is coarser than itself, and generation will run this film backwards: outline first, twigs last.

Before we build on `log_prob(x, sigma)`, we check that it is the convolution (M2.1). In one dimension an integral is a sum over a fine grid.
"""

# %% tags=["check"]
line = GaussianMixture(
    torch.tensor([0.3, 0.45, 0.25]),
    torch.tensor([[-1.1], [0.1], [1.0]]),
    torch.tensor([0.12, 0.25, 0.08]).square()[:, None, None],
)
y = torch.linspace(-4, 4, 4001, dtype=torch.float64)
z = torch.linspace(-3, 3, 101, dtype=torch.float64)
worst = 0.0
for sigma in (0.05, 0.3, 2.0):
    kernel = torch.exp(-((z[:, None] - y) ** 2) / (2 * sigma**2)) / (
        sigma * math.sqrt(2 * math.pi)
    )
    convolution = kernel @ line.log_prob(y[:, None]).exp() * (y[1] - y[0])
    worst = max(
        worst, (convolution - line.log_prob(z[:, None], sigma).exp()).abs().max().item()
    )
print(f"p_σ against quadrature of (M2.1): max difference {worst:.1e}")
assert worst < 1e-12

# %% [markdown]
r"""
## Tweedie: the best guess is a score

You are shown $z$ and asked for $y$. The answer with the least squared error is the posterior mean $D(z; \sigma) = \mathbb E[y \mid z]$; this function is what we call *the denoiser*. It needs one gradient, of the Gaussian in (M2.1), and Bayes' rule:

$$
\begin{aligned}
\nabla p_\sigma(z) &= \int p(y)\, \mathcal N(z; y, \sigma^2 I)\, \frac{y - z}{\sigma^2}\, \mathrm dy \\
&= \frac{p_\sigma(z)}{\sigma^2} \int (y - z)\; p(y \mid z)\, \mathrm dy \qquad \text{since } p(y \mid z) = p(y)\,\mathcal N(z; y, \sigma^2 I) / p_\sigma(z) \\
&= \frac{p_\sigma(z)}{\sigma^2} \bigl(D(z; \sigma) - z\bigr).
\end{aligned}
$$

Divide by $p_\sigma(z)$ and you have Tweedie's formula ([Efron, 2011](https://doi.org/10.1198/jasa.2011.tm11181)):

$$D(z; \sigma) - z = \sigma^2\, \nabla \log p_\sigma(z). \tag{M2.2}$$

This is (M1.1) with another letter. So for *any* density

$$m(x) = D(x; \lambda) - x: \tag{M2.3}$$

**one call of a denoiser is one step of mean shift.** The rest of this book lives off this line. The check takes its sides from different places: `denoise` averages the posterior means of the mixture's components; the gradient comes from automatic differentiation.
"""

# %% tags=["check"]
for sigma in (0.02, 0.2, 2.0):
    z = p.sample(200, sigma, generator).requires_grad_()
    (score,) = torch.autograd.grad(p.log_prob(z, sigma).sum(), z)
    error = (p.denoise(z, sigma) - (z + sigma**2 * score)).abs().max().item()
    print(f"σ = {sigma:4}: max |D − (z + σ²∇log p_σ)| = {error:.1e}")
    assert error < 1e-11

# %% [markdown]
r"""
## The ideal denoiser

Now let $p$ be the training set itself. The posterior over the data is Bayes' rule with $M$ equal priors, and its mean is a finite sum:

$$D^*(z; \sigma) = \frac{\sum_i y_i\, \mathcal N(z; y_i, \sigma^2 I)}{\sum_i \mathcal N(z; y_i, \sigma^2 I)}. \tag{16}$$

No network can do better on the training loss: at every $(z, \sigma)$ this *is* the minimiser ([Vincent, 2011](https://doi.org/10.1162/NECO_a_00142); [Karras et al., 2022](https://arxiv.org/abs/2206.00364)). The normalising constants cancel, which leaves a softmax of $-|z - y_i|^2/2\sigma^2$. Expand the square. The term in $|z|^2$ is the same for all $i$, so it cancels as well, and what stays is

$$D^*(z; \sigma) = \sum_i \operatorname{softmax}_i\!\Bigl(\frac{z \cdot y_i}{\sigma^2} - \frac{|y_i|^2}{2\sigma^2}\Bigr)\, y_i. \tag{M2.4}$$

Read it as attention ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)): the query is $z/\sigma^2$, the keys are the data, the values are the data again, and a bias per key stands in for the length of the key. The noise level is the temperature.


<details>
<summary>Convention: Eq. 16</summary>

The paper writes $\mathcal N(x; y_i, \sigma(t))$, with the standard deviation in the last place; a few lines later it is $\mathcal N(\alpha_t x, \sigma_t^2 I)$, with the variance. Here the variance stands there: this is the posterior of $z = y + \sigma n$, and (M2.2) holds for no other width. It then says that $\sigma(t)$ takes the place of the bandwidth $\lambda$. With the paper's kernel $e^{-|x|^2/\lambda^2}$ it takes the place of $\lambda/\sqrt 2$; in this book $\lambda$ is a standard deviation and the remark holds as printed.

</details>

The paper says of Eq. 16: "Attentive readers will notice that this is in fact the discrete mean shift formula." Let us take it at its word, and write the three forms as three people would: a statistician from 1975, the author of Eq. 16, and an engineer of language models.
"""


# %%
def mean_shift_sum(x, points, bandwidth):  # Eq. 7 with a Gaussian kernel
    kernel = torch.exp(-torch.cdist(x, points).square() / (2 * bandwidth**2))
    return kernel @ points / kernel.sum(-1, keepdim=True)


def equation_16(z, data, sigma):
    log_normal = (
        torch.distributions.Normal(data, sigma).log_prob(z[:, None]).sum(-1)
    )  # (queries, data)
    weight = (log_normal - log_normal.logsumexp(-1, keepdim=True)).exp()
    return (weight[..., None] * data).sum(1)


def attention_read(z, data, sigma):  # (M2.4)
    bias = -data.square().sum(-1) / (2 * sigma**2)
    return scaled_dot_product_attention(
        z, data, data, attn_mask=bias, scale=1 / sigma**2
    )


# %% [markdown]
r"""
**Predict.** Will they agree exactly, to rounding, or to a few per cent? Is there a $\sigma$ where one of them fails although the formula is right?
"""

# %% tags=["check"]
denoise = IdealDenoiser(data)
for sigma in (1.0, 0.1, 0.05):
    z = data[:100] + sigma * torch.randn(
        100, 2, dtype=torch.float64, generator=generator
    )
    forms = [
        form(z, data, sigma) for form in (mean_shift_sum, equation_16, attention_read)
    ]
    forms.append(denoise(z, sigma))
    gaps = [(a - b).abs().max().item() for i, a in enumerate(forms) for b in forms[:i]]
    print(
        f"σ = {sigma:4}: largest difference between any two of the four forms "
        f"{max(gaps):.1e}"
    )
    assert max(gaps) < 1e-11

far = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
print("\na point far out, σ = 0.02:")
for form in (mean_shift_sum, equation_16, attention_read):
    print(f"  {form.__name__:15}", form(far, data, 0.02).tolist())

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

To rounding, all four (the fourth is the library's `IdealDenoiser`, which is `attention_read` with the data centred). The textbook sum is the one that breaks: far from the data each kernel value is below $10^{-308}$, and the sum is $0/0$.

</details>

A softmax subtracts the largest exponent first and does not care. It is the same formula and not the same program.

### What does a query attend to?

Move the noise level below. One query point stays where it is, among the twigs; a red disc marks each datum by its weight in (M2.4). The perplexity $e^{H}$ of the weights, with $H$ their entropy, says how many data the answer averages.

**Predict** the two ends: what is $D^*$ for $\sigma \to \infty$, and for $\sigma \to 0$?
"""

# %%
query = torch.tensor([[-0.45, -0.75]], dtype=torch.float64)


def attention(sigma):
    return (-torch.cdist(query, data)[0].square() / (2 * sigma**2)).softmax(0)


axis = torch.logspace(-2.3, 0.7, 80, dtype=torch.float64)
perplexity = [torch.special.entr(attention(sigma)).sum().exp() for sigma in axis]
answers = torch.stack([attention(sigma) @ data for sigma in axis])


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def attend(sigma):
    weight = attention(sigma)
    fig, (left, right) = plt.subplots(1, 2, figsize=(6.0, 3.1), width_ratios=(1.2, 1))
    left.set(
        title=f"σ = {sigma:.3g}", xlim=(-1.1, 1.1), ylim=(-1.15, 1.15), aspect="equal"
    )
    left.axis("off")
    figures.points(left, data, "0.7", size=5, alpha=1)
    left.scatter(*data.T, s=250 * weight.sqrt(), c=figures.RED, alpha=0.4, linewidths=0)
    left.plot(*answers.T, color=figures.BLUE, linewidth=1.2, linestyle="-", zorder=4)
    left.plot(*query[0], "*", color=figures.BLACK, markersize=12, zorder=5)
    left.plot(*(weight @ data), "D", color=figures.BLUE, markersize=7, zorder=6)
    left.text(-0.54, -0.75, "query z", ha="right", va="center")
    left.text(
        *(weight @ data + torch.tensor([0.09, 0.0])),
        "D*",
        color=figures.BLUE,
        va="center",
        zorder=6,
    )
    right.loglog(axis, perplexity, color=figures.BLACK)
    right.plot(
        sigma,
        torch.special.entr(weight).sum().exp(),
        "D",
        color=figures.BLUE,
        markersize=7,
    )
    right.set(title="data that share the weight, $e^H$", xlabel="σ", ylim=(0.8, 700))
    return fig


explore(
    attend,
    sigma=[0.01, 0.03, 0.06, 0.1, 0.15, 0.25, 0.5, 2.0],
    default={"sigma": 0.15},
    alt="Left, 400 points of the fractal with red discs for the attention weights of "
    "one query, and the answer D*. Right, the perplexity of the weights against σ: "
    "from 1 datum at small σ to all 400 at large σ.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Hot, the softmax gives every datum the same weight, and $D^*$ is the mean of the training set. Cold, it copies the nearest datum.

</details>

The blue line is the road between the two. On the way the answer visits the local averages of every scale.

## From a denoiser to a flow

To generate, we need to walk from $p_{\sigma_{\max}}$, which is nearly a Gaussian, down to $p_0 = p$. Which motion of points turns one density into the next? Blur obeys the heat equation with $\sigma^2/2$ as time, $\partial p_\sigma / \partial(\sigma^2/2) = \Delta p_\sigma$. Therefore

$$\frac{\partial p_\sigma}{\partial \sigma} = \sigma\, \nabla\!\cdot \nabla p_\sigma = -\nabla\!\cdot\bigl(p_\sigma\, v\bigr), \qquad v = -\sigma\, \nabla \log p_\sigma,$$

and the right-hand side is the continuity equation: points that move with velocity $v$ carry the density along. With Tweedie this is the **probability-flow ODE** ([Song et al., 2021](https://arxiv.org/abs/2011.13456)),

$$\frac{\mathrm dz}{\mathrm d\sigma} = -\sigma\, \nabla \log p_\sigma(z) = \frac{z - D(z; \sigma)}{\sigma}. \tag{M2.5}$$

It has no noise in it. All randomness is in the start, $z \sim \mathcal N(0, \sigma_{\max}^2 I)$, and then each point has its way laid out.

In one dimension there is an exact solution to hold it against. Points on a line that move with a smooth velocity cannot overtake, so the mass to the left of a moving point stays what it was: with $F_\sigma$ the distribution function of $p_\sigma$,

$$F_\sigma(z(\sigma)) = \text{const}. \tag{M2.6}$$

**Predict.** Start 15 points at equal steps of probability. Will they arrive at equal distances?
"""


# %%
def cdf(z, sigma):  # of the one-dimensional mixture, F_σ
    spread = (line.covariances[:, 0, 0] + sigma**2).sqrt()
    return (line.weights * torch.special.ndtr((z - line.means[:, 0]) / spread)).sum(-1)


high, low = 8.0, 0.02
sigmas = karras_sigmas(25, low, high)[:-1]
start = (
    high
    * torch.special.ndtri(torch.linspace(1 / 30, 29 / 30, 15, dtype=torch.float64))[
        :, None
    ]
)
track = torch.stack(list(sample(line.denoise, start, sigmas)))[
    ..., 0
].T  # (points, levels)

grid_s, grid_u = (
    torch.logspace(math.log10(high), math.log10(low), 160),
    torch.linspace(-2.3, 2.3, 200),
)
shrink = (1 + grid_s**2).sqrt()
image = line.log_prob(
    (grid_u[:, None] * shrink)[..., None], grid_s.expand(200, 160)
).exp()

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(7.2, 3.4))
ax.contourf(grid_s, grid_u, (image / image.amax(0)).sqrt(), levels=14, cmap=figures.INK)
ax.plot(
    sigmas,
    (track / (1 + sigmas**2).sqrt()).T,
    color=figures.RED,
    linewidth=1.1,
    linestyle="-",
)
ax.plot(
    sigmas, (track / (1 + sigmas**2).sqrt()).T, ".", color=figures.RED, markersize=3
)
ax.set(
    xscale="log",
    xlim=(high, low),
    ylim=(-2.3, 2.3),
    xlabel="noise level σ (falling)",
    ylabel="z / √(1 + σ²)",
)
figures.show(
    fig,
    alt="A one-dimensional density drawn against the noise level: one wide bump at σ "
    "= 8 splits into three at σ = 0.02. Fifteen red trajectories, 24 Heun steps each, "
    "run with the bumps and gather in the three modes without crossing.",
)

# %% tags=["check"]
for steps in (16, 64, 256):
    grid = karras_sigmas(steps + 1, low, high)[:-1]
    *_, end = sample(line.denoise, start, grid)
    error = (cdf(end, low) - cdf(start, high)).abs().max().item()
    print(f"{steps:3} Heun steps: max |F(end) − F(start)| = {error:.1e}")
assert error < 3e-5

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

No: they arrive crowded where the density is high, which is what "samples of $p$" means.

</details>

The quantile is kept to the solver's accuracy, with nothing compared but two closed forms.

## One Euler step is DDIM

Euler's method freezes the slope of (M2.5) at $\sigma$ and steps to $\sigma'$:

$$z' = z + (\sigma' - \sigma)\,\frac{z - D}{\sigma} = D + \frac{\sigma'}{\sigma}\,(z - D). \tag{M2.7}$$

DDIM ([Song et al., 2021](https://arxiv.org/abs/2010.02502)) was derived quite differently, for the variance-preserving $z_t = \sqrt{\bar\alpha}\, y + \sqrt{1 - \bar\alpha}\, n$ and a network $\hat\epsilon$ that predicts the noise:

$$z_t' = \sqrt{\bar\alpha'}\; \underbrace{\frac{z_t - \sqrt{1 - \bar\alpha}\; \hat\epsilon}{\sqrt{\bar\alpha}}}_{\text{predicted } y} + \sqrt{1 - \bar\alpha'}\; \hat\epsilon. \tag{DDIM}$$

Put $z = z_t/\sqrt{\bar\alpha}$ and $\sigma = \sqrt{(1 - \bar\alpha)/\bar\alpha}$. The fraction is $z - \sigma\hat\epsilon$, our $D$; so $\hat\epsilon = (z - D)/\sigma$. Divide (DDIM) by $\sqrt{\bar\alpha'}$: it reads $z' = D + \sigma' (z - D)/\sigma$, which is (M2.7). One method in two units; the check runs it in both.
"""

# %% tags=["check"]
alpha_bar = torch.linspace(0.999, 0.01, 40, dtype=torch.float64).flip(
    0
)  # from noise to data
sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()
z = sigmas[0] * torch.randn(50, 2, dtype=torch.float64, generator=generator)

z_t = alpha_bar[0].sqrt() * z
for a, a_next, sigma in zip(alpha_bar[:-1], alpha_bar[1:], sigmas[:-1], strict=True):
    epsilon = (z_t - a.sqrt() * p.denoise(z_t / a.sqrt(), sigma)) / (1 - a).sqrt()
    predicted = (z_t - (1 - a).sqrt() * epsilon) / a.sqrt()
    z_t = a_next.sqrt() * predicted + (1 - a_next).sqrt() * epsilon

*_, end = sample(p.denoise, z, sigmas, solver="euler")
error = (z_t / alpha_bar[-1].sqrt() - end).abs().max().item()
print(
    "DDIM in its own variables against Euler in σ, 39 steps: max difference "
    f"{error:.1e}"
)
assert error < 1e-11

# %% [markdown]
r"""
### One vector, two destinations

Write (M2.7) once more, as a step from $z$:

$$z' = z + \Bigl(1 - \frac{\sigma'}{\sigma}\Bigr)\underbrace{\bigl(D(z; \sigma) - z\bigr)}_{\text{mean shift, bandwidth } \sigma}. \tag{M2.8}$$

A sampler is mean shift that takes only the fraction $1 - \sigma'/\sigma$ of each step while the bandwidth falls. Take the whole step instead, at a fixed bandwidth, and you climb to a mode. Sampling and mode seeking follow one vector; what tells them apart is how far they follow it before they look again.

**Predict.** Three runs from the same starting points: whole steps at fixed $\lambda$; whole steps while $\lambda$ falls; fractions while it falls. Which one gives the fewest different end points?
"""

# %%
tree = fractal("A")  # one of the two classes
n = pick(smoke=60, laptop=250)
begin = tree.sample(n, 1.2, generator)
whole, annealed = begin, begin
for _ in range(100):
    whole = tree.denoise(whole, 0.06)
for bandwidth in [*karras_sigmas(20, 0.06, 1.2)[:-1].tolist(), *[0.06] * 80]:
    annealed = tree.denoise(annealed, bandwidth)
*_, sampled = sample(tree.denoise, begin, karras_sigmas(24, 0.005, 1.2))

runs = {
    "whole steps, λ = 0.06": whole,
    "whole steps, λ: 1.2 → 0.06": annealed,
    "fractions, σ: 1.2 → 0": sampled,
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(list(runs), span=1.1)
for ax, ends, size, color, marker in zip(
    axes, runs.values(), (30, 40, 7), figures.PALETTE, "os^", strict=False
):
    ax.set(xlim=(-0.55, 1.35), ylim=(-0.5, 1.4))
    figures.density(ax, tree, 0.06 if size > 7 else 0.01, pixels=100)
    figures.points(ax, ends, color, marker, size=size, alpha=1)
figures.show(
    fig,
    alt="The same starting points after three procedures, over the blurred fractal "
    "tree: mean shift at a fixed bandwidth ends on about ten modes, with a falling "
    "bandwidth on a single one, and the sampler spreads over all branches.",
)

# %% tags=["check"]
for name, ends in runs.items():
    height = tree.log_prob(ends, 0.06)
    cells = len((ends / 0.1).round().unique(dim=0))
    print(
        f"{name:27}: {cells:3} cells of width 0.1 hold the {n} end points; highest "
        f"log p_λ = {height.max():.6f}"
    )
step = (tree.denoise(annealed, 0.06) - annealed).norm(dim=-1).max()
print(f"the annealed points stand still: |m| ≤ {step:.1e}")
assert step < 1e-5
assert annealed.std(0).max() < 1e-3

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Whole steps with a falling bandwidth: all points end in one place. At a large bandwidth they gather near the mean, and from there they all go the same way.

</details>

Here the way ends on the highest of all modes, by luck and smoothness, not by a theorem. The middle panel is the embryo of mean-shift distillation: chapter 06 starts from a point of interest, with a bandwidth that is not so large.

## Heun, and what an order is worth

Euler uses the slope at the start of a step. **Heun** takes that step on trial, asks for the slope at its end, and repeats the step with the mean of both ([Karras et al., 2022](https://arxiv.org/abs/2206.00364)). Two calls instead of one; the local error falls from $h^2$ to $h^3$, so the error at the end falls like $N^{-2}$ instead of $N^{-1}$.

On the one-dimensional mixture we measure the order by (M2.6), from the error of the quantile. The ideal denoiser of 64 points is a different animal. Close to $\sigma = 0$ its answer is the nearest datum, and a trajectory ends *on* a datum. So there we count how many trajectories end on another datum than those of a very fine solution.

**Predict.** Are there still orders to see on the right?
"""

# %%
few = IdealDenoiser(data[:64])
quantile = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)[:, None]
starts = torch.randn(
    pick(smoke=200, laptop=2000), 2, dtype=torch.float64, generator=generator
)
*_, fine = sample(few, 5 * starts, karras_sigmas(pick(smoke=256, laptop=512), 0.002, 5))
steps = torch.tensor(pick(smoke=[8, 16, 32, 64], laptop=[8, 16, 32, 64, 128]))

error, astray = {}, {}
for solver in ("euler", "heun"):
    error[solver], astray[solver] = [], []
    for count in steps.tolist():
        *_, end = sample(
            line.denoise,
            high * torch.special.ndtri(quantile),
            karras_sigmas(count + 1, low, high)[:-1],
            solver,
        )
        error[solver].append(
            (cdf(end, low) - cdf(high * torch.special.ndtri(quantile), high))
            .square()
            .mean()
            .sqrt()
        )
        *_, end = sample(few, 5 * starts, karras_sigmas(count, 0.002, 5), solver)
        astray[solver].append(((end - fine).norm(dim=-1) > 0.01).double().mean())

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, sharex=True)
for solver, order, marker, color in (
    ("euler", 1, "o", figures.BLUE),
    ("heun", 2, "s", figures.RED),
):
    for ax, values in ((left, error[solver]), (right, astray[solver])):
        values = torch.stack(values)
        ax.loglog(
            steps[values > 0],
            values[values > 0],
            marker=marker,
            color=color,
            linestyle="-",
            label=solver.title(),
        )
        guide = 0.5 * values[2] * (steps / steps[2]) ** -float(order)
        ax.loglog(
            steps,
            guide,
            color="0.6",
            linestyle=(":", "--")[order - 1],
            linewidth=1.2,
            label=f"slope −{order}",
        )
left.set(
    title="smooth density",
    xlabel="steps",
    ylabel="error of the quantile (root mean square)",
)
right.set(
    title="ideal denoiser of 64 data",
    xlabel="steps",
    ylabel="share of trajectories on another datum",
)
right.set_xticks(steps.tolist(), [str(count) for count in steps.tolist()])
right.minorticks_off()
left.legend(fontsize=8)
figures.show(
    fig,
    alt="Two log-log plots against the number of steps. Left, quantile error on a "
    "smooth mixture: Euler falls with slope −1, Heun with slope −2. Right, share of "
    "trajectories that end on another of 64 data than a fine solution: the same "
    "slopes.",
)

# %% tags=["check"]
for solver, order in (("euler", 1), ("heun", 2)):
    values = torch.stack(error[solver])
    measured = (values[:-1] / values[1:]).log2()
    print(
        f"{solver:5}: measured order from doubling to doubling",
        " ".join(f"{m:.2f}" for m in measured),
    )
    assert abs(measured[-1] - order) < 0.2
print(
    "64 data, share on another datum, Euler:",
    " ".join(f"{v:.4f}" for v in astray["euler"]),
)
print(
    "                                 Heun: ",
    " ".join(f"{v:.4f}" for v in astray["heun"]),
)
assert astray["heun"][-1] < astray["euler"][-1]

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Yes, in an unusual currency. A trajectory is lost only if its error carries it over the watershed between two data, and the share of starts within reach of a watershed is proportional to the error.

</details>

A single lost trajectory is off by a whole datum, however good the solver. It is tempting to call this *stiffness*. It is not, and the difference matters for chapter 05. Linearise (M2.5): a small deviation obeys

$$\frac{\mathrm d\,\delta z}{\mathrm d \ln\sigma} = \Bigl(I - \frac{\operatorname{Cov}[y \mid z]}{\sigma^2}\Bigr)\, \delta z, \tag{M2.9}$$

because $\partial D/\partial z = \operatorname{Cov}[y \mid z]/\sigma^2$ (exercise 2.4). A covariance is never negative, so no eigenvalue exceeds 1. Going down in $\sigma$, the factor of an Euler step, $1 - (1 - \sigma'/\sigma) \cdot \text{eigenvalue}$, is at least $\sigma'/\sigma$: there is no step length at which Euler would start to oscillate. What happens at a watershed is the opposite. There the covariance exceeds $\sigma^2$, the eigenvalue is negative, and deviations *grow* as $\sigma$ falls. The end of the road is harmless: near one datum, $\operatorname{Cov} = 0$, $z - y$ is proportional to $\sigma$, and Euler is exact.
"""

# %% [markdown]
r"""
## Samples of the fractal

All parts are here: a denoiser, a solver, noise. The left panel shows roads of the flow with the exact denoiser of the fractal, the middle its samples. The right panel has the same sampler and the same noise, but the ideal denoiser of the 400 training points.

**Predict.** How will the right panel differ from the middle one?
"""

# %%
n = pick(smoke=300, laptop=1500)
noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
sigmas = karras_sigmas(32, 0.002, 5.0)
*road, samples = sample(p.denoise, 5 * noise, sigmas)
*_, memorised = sample(denoise, 5 * noise, sigmas)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (first, second, third) = figures.planes(
    ["roads of the flow", "samples, exact denoiser", "samples, D* of 400 data"]
)
figures.density(first, p, pixels=200)
figures.paths(
    first, [state[:60] for state in (*road, samples)], figures.RED, linewidth=0.7
)
figures.points(second, samples, figures.BLUE, size=2, alpha=0.6)
figures.points(third, memorised, figures.GREEN, "^", size=4, alpha=0.6)
figures.show(
    fig,
    alt="Left, 60 probability-flow trajectories end on a branching fractal. Middle, "
    f"{n} samples with the exact denoiser fill its branches. Right, the samples with "
    "the ideal denoiser of 400 points lie on those 400 points, with gaps between.",
)

# %% tags=["check"]
nll = -p.log_prob(samples)
own = -p.log_prob(p.sample(4000, generator=generator))
print(
    f"mean −log p: samples {nll.mean():.3f} ± {nll.std() / n**0.5:.3f}, the density's "
    f"own {own.mean():.3f}"
)
nearest = torch.cdist(memorised, data).amin(-1)
print(
    "share of the D* samples within 0.001 of a training point: "
    f"{(nearest < 1e-3).double().mean():.3f}"
)
assert abs(nll.mean() - own.mean()) < 5 * (nll.var() / n + own.var() / len(own)).sqrt()
assert (nearest < 1e-3).double().mean() > 0.9

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The middle panel has new points on the old branches; the right one has the old points. (The few per cent that are not within 0.001 of a datum lie between two data that are closer together than the last noise level; there the last answer is their average.)

</details>

## Break it: narrow noise, few steps

**Noise that is not noise.** The sampler starts from $\mathcal N(0, \sigma_{\max}^2 I)$; the truth at that level is $p_{\sigma_{\max}}$, which still has the data in it. With $\sigma_{\max} = 0.3$, less than the spread 0.5 of the data, the start is too narrow, and no solver can know.

**Too few steps.** Seven calls of the denoiser pay for seven Euler steps or for four of Heun.

**Predict.** Which of the three has the best (lowest) mean $-\log p$? Is any of them better than the truth? And is the method of higher order worth its price here?
"""

# %% tags=["break-it"]
runs = {
    "σ_max = 0.3, Heun, 24 steps": (0.3, 24, "heun"),
    "σ_max = 5, Euler, 7 steps": (5.0, 7, "euler"),
    "σ_max = 5, Heun, 4 steps": (5.0, 4, "heun"),
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(list(runs))
for ax, (sigma_max, count, solver), color in zip(
    axes, runs.values(), figures.PALETTE, strict=False
):
    *_, end = sample(
        p.denoise, sigma_max * noise, karras_sigmas(count, 0.002, sigma_max), solver
    )
    figures.points(ax, end, color, size=2, alpha=0.6)
    nll, spread = -p.log_prob(end).mean(), end.std(0).mean()
    note = f"mean −log p = {nll:.2f}\nspread {spread:.2f}"
    ax.text(
        0.03,
        0.97,
        note,
        transform=ax.transAxes,
        va="top",
        fontsize=8.5,
        bbox={"color": "white", "alpha": 0.8},
    )
truth = p.sample(4000, generator=generator)
print(
    f"the density itself: mean −log p {-p.log_prob(truth).mean():.2f}, spread "
    f"{truth.std(0).mean():.2f}"
)
figures.show(
    fig,
    alt="Samples of the fractal from three broken settings. With σ_max = 0.3 only the "
    "trunks near the centre are reached. Seven Euler steps miss the thin twigs. Four "
    "Heun steps, the same number of calls, scatter points off the branches.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The first has the best score of all, far better than the truth, and is the worst set of samples: it lives in the dense trunk and leaves out the rest. And Heun loses to Euler.

</details>

A mean $-\log p$ *below the entropy* of the density is no triumph; it says that samples crowd where the density is high. Remember this when you see a table of likelihoods. (The paper's Table 2 gives DDIM −1.85 on its fractal; a class of ours has the entropy −1.34.)

An order is a promise about small steps. With steps this long Heun's trial points land where the slope has nothing to do with the road, and it extrapolates from there.

## Memorisation has a ruler

Why does $D^*$ give back its training data? Because it samples, exactly, the density it was built from. At the level $\sigma_{\min}$ where the solver stops, that density is $\frac1M\sum_i \mathcal N(y_i, \sigma_{\min}^2 I)$. So the machine is equal in distribution to one line:

`data[torch.randint(M, (n,))] + sigma_min * torch.randn(n, 2)`

Then the distance from a sample to its datum is the length of a Gaussian vector: in the plane its median is $\sigma_{\min}\sqrt{2 \ln 2}$, as long as $\sigma_{\min}$ is small against the gaps between the data.

**Predict** how this compares with the distance from a *fresh* point of $p$ to the nearest training point.
"""

# %%
stops = torch.tensor([0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3])
ode, line_of_code = [], []
for stop in stops.tolist():
    *_, end = sample(denoise, 5 * noise, karras_sigmas(32, stop, 5.0)[:-1])
    short = data[torch.randint(len(data), (n,), generator=generator)]
    short = short + stop * torch.randn(
        short.shape, dtype=short.dtype, generator=generator
    )
    ode.append(torch.cdist(end, data).amin(-1).median())
    line_of_code.append(torch.cdist(short, data).amin(-1).median())
fresh = torch.cdist(p.sample(4000, generator=generator), data).amin(-1).median()

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6.2, 3.5))
ax.loglog(
    stops, ode, "o", color=figures.BLUE, markersize=7, label="32 Heun steps with D*"
)
ax.loglog(
    stops,
    line_of_code,
    "x",
    color=figures.RED,
    markersize=8,
    markeredgewidth=2,
    label="the one-liner",
)
ax.loglog(
    stops,
    stops * math.sqrt(2 * math.log(2)),
    color="0.5",
    linestyle="--",
    label=r"$\sigma_{\min}\sqrt{2\,\ln 2}$",
)
ax.axhline(fresh, color=figures.GREEN, linestyle="-.", label="fresh points of p")
ax.set(
    xlabel=r"$\sigma_{\min}$, where the solver stops",
    ylabel="median distance to nearest datum",
    ylim=(3e-4, 1),
)
ax.legend(fontsize=9)
figures.show(
    fig,
    alt="Median distance of samples to the nearest training point against the final "
    "noise level, log-log. The sampler with D* and the one-line program coincide and "
    "follow σ times 1.18 at small σ, and bend away below it before they reach the "
    "level of fresh points.",
)

# %% tags=["check"]
ratio = torch.stack(ode)[:2] / (stops[:2] * math.sqrt(2 * math.log(2)))
print(
    "median distance / (σ_min √(2 ln 2)) at σ_min = .0005, .001:",
    " ".join(f"{r:.3f}" for r in ratio),
)
print(
    f"fresh points of p: median distance to the nearest of {len(data)} data {fresh:.4f}"
)
assert ((ratio - 1).abs() < pick(smoke=0.25, laptop=0.08)).all()

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

A fresh point is about 0.017 away from the nearest datum; a sample of $D^*$ is as near as $\sigma_{\min}$ makes it. The circles sit on the crosses.

</details>

The only thing $D^*$ can put between the data is noise, and $\sigma_{\min}$ doses it. A diffusion model that reached the minimum of its training loss would be useless. Its new images come from *failing* to reach $D^*$ in a fortunate manner (chapter 07); where it comes too close, it gives its training images away ([Carlini et al., 2023](https://arxiv.org/abs/2301.13188)).
"""

# %% [markdown]
r"""
## Break it: seven digits

In float32 a number has about seven digits. Take $\sigma = 0.002$ and data that lie around 10, as in a map whose origin is far away: the logits of (M2.4) are of size $z \cdot y/\sigma^2 \approx 200/0.000004 = 5 \cdot 10^7$, so each is rounded by several units, and a softmax feels a tenth of a unit.

**Predict.** The distances $|z - y_i|$ do not depend on the origin. Does `softmax(-cdist²)` in float32 escape?
"""


# %%
def distance_form(z, data, sigma):
    return (-torch.cdist(z, data).square() / (2 * sigma**2)).softmax(-1) @ data


def library_form(z, data, sigma):
    return IdealDenoiser(data)(z, sigma)


# %% tags=["break-it"]
levels = torch.logspace(0, -2.7, 10)
forms = {
    "attention_read": attention_read,
    "softmax(−cdist²)": distance_form,
    "IdealDenoiser": library_form,
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 2, sharey=True)
for ax, shift in zip(axes, (0.0, 10.0), strict=True):
    for (name, form), color, marker in zip(
        forms.items(), figures.PALETTE, figures.MARKERS, strict=False
    ):
        errors = []
        for sigma in levels.tolist():
            z = data + sigma * torch.randn(
                data.shape, dtype=data.dtype, generator=torch.Generator().manual_seed(0)
            )
            short = (
                form((z + shift).float(), (data + shift).float(), sigma).double()
                - shift
            )
            errors.append((short - equation_16(z, data, sigma)).abs().max() / sigma)
        ax.loglog(levels, errors, marker=marker, color=color, label=name)
        print(
            f"data around {shift:g}, σ = {sigma:.3f}: {name:17} max |D32 − D64|/σ = "
            f"{errors[-1]:.1e}"
        )
    ax.axhline(0.02, color="0.6", linewidth=1, linestyle=":")
    ax.set(title=f"data around {shift:g}", xlabel="σ", xlim=(1.3, 0.0015))
axes[0].set_ylabel("max |D32 − D64| / σ")
axes[0].legend(fontsize=8)
figures.show(
    fig,
    alt="Error of three float32 denoisers against float64, in units of σ, as σ falls "
    "from 1 to 0.002. Around the origin two plain forms come near 0.01; with data "
    "around 10 they pass 1, while IdealDenoiser stays below 0.02.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

No: for more than a few points `torch.cdist` itself expands the square into a matrix product.

</details>

The cure is one subtraction: move the origin to the mean of the data before you square anything. Distances do not notice, logits shrink. `IdealDenoiser` does this, and on the CPU it turns to float64 below $\sigma = 0.004$ times the radius of the data (the drop on the left), which keeps it under the dotted line, $0.02\,\sigma$. What error is left at "around 10" was there before we began: a float32 near 10 is only known to $5 \cdot 10^{-7}$.

## There and back

The flow has no noise, so it can be run upwards: from a datum $x$ to the noise that would have produced it. `invert` walks the same levels in the other direction, and `list(invert(…))` aligns, reversed, with `list(sample(…))`. Chapter 05 will need both.

**Predict.** On eight smooth Gaussians, up and down again with Heun, a method of order 2: with which order does the point return to $x$?
"""

# %% tags=["check"]
smooth = eight_gaussians()
x = smooth.sample(100, generator=generator)
counts = pick(smoke=[16, 32, 64], laptop=[16, 32, 64, 128])
for solver, order in (("euler", 1), ("heun", 3)):
    errors = []
    for count in counts:
        # without the level 0, where the ODE divides by 0
        grid = karras_sigmas(count + 1, 0.02, 5.0)[:-1]
        *_, encoded = invert(smooth.denoise, x, grid, solver)
        *_, back = sample(smooth.denoise, encoded, grid, solver)
        errors.append((back - x).square().sum(-1).mean().sqrt())
    rates = (torch.stack(errors[:-1]) / torch.stack(errors[1:])).log2()
    print(
        f"{solver:5}: |back − x| =",
        " ".join(f"{e:.1e}" for e in errors),
        "  order",
        " ".join(f"{r:.2f}" for r in rates),
    )
    assert abs(rates[-1] - order) < 0.25

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

About **3**, one better than the method, and about 1 for Euler.

</details>

A Heun step from $\sigma$ to $\sigma + h$ makes the local error $Ch^3 + O(h^4)$, the step back makes $C(-h)^3 + O(h^4)$: the odd powers cancel, $N$ steps leave $N h^4 \sim N^{-3}$. For Euler the local error is $Ch^2$, both signs are equal, and nothing cancels. A round trip is a flattering test: the encoded noise itself is not right to third order.

## The same function in 64 dimensions

Nothing above knew that the data were points in a plane. Here are 1500 handwritten digits of 8 × 8 pixels ([Pedregosa et al., 2011](https://jmlr.org/papers/v12/pedregosa11a.html)), scaled to [−1, 1], and 297 more that we keep back. The denoiser is `IdealDenoiser(train)`: the same class, not a line changed.

**Predict.** The first digit below is in the training set, the second is not. What does the ideal denoiser make of the second when there is hardly any noise, $\sigma = 0.1$?
"""

# %%
images = torch.from_numpy(load_digits().images) / 8 - 1  # (1797, 8, 8)
train, held_out = images[:1500], images[1500:]
digit_denoiser = IdealDenoiser(train)

ladder = (0.1, 0.4, 0.8, 1.5, 3.0, 8.0)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(4, 7, figsize=(7.2, 4.3))
for row, digit in ((0, train[4]), (2, held_out[9])):
    texture = torch.randn(
        8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    noisy = [digit, *(digit + sigma * texture for sigma in ladder)]
    answers = [
        digit,
        *(digit_denoiser(z, sigma) for z, sigma in zip(noisy[1:], ladder, strict=True)),
    ]
    for column, (z, answer) in enumerate(zip(noisy, answers, strict=True)):
        axes[row, column].imshow(
            z, cmap="gray_r", vmin=z.min().clamp(max=-1), vmax=z.max().clamp(min=1)
        )
        if column:
            axes[row + 1, column].imshow(answer, cmap="gray_r", vmin=-1, vmax=1)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
for column, name in enumerate(["clean", *(f"σ = {sigma:g}" for sigma in ladder)]):
    axes[0, column].set_title(name, loc="center")
for row, name in enumerate(
    ("in the training set\nnoisy z", "D*(z; σ)", "held out\nnoisy z", "D*(z; σ)")
):
    axes[row, 0].set_ylabel(name, fontsize=9)
figures.show(
    fig,
    alt="Two handwritten digits with growing noise and the ideal denoiser's answers. "
    "The training digit is recovered exactly up to moderate noise. The held-out digit "
    "is replaced by another training digit even at σ = 0.1. At σ = 8 both give a "
    "blurred mean.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

*Somebody else's* digit: under the density it was built from, no other explanation exists. The best answer would be the noisy picture itself.

</details>

How much that costs is a curve. The errors on training and on held-out digits are equal as long as the answer is an average of many. Below $\sigma \approx 2$ they part, and below 0.3 it would have been better to do nothing.
"""

# %%
axis = torch.logspace(-1.3, 1, 16)
loss = {"training digits": [], "held-out digits": []}
for sigma in axis.tolist():
    for name, digits in (
        ("training digits", train[: len(held_out)]),
        ("held-out digits", held_out),
    ):
        texture = torch.randn(digits.shape, dtype=torch.float64, generator=generator)
        loss[name].append(
            (digit_denoiser(digits + sigma * texture, sigma) - digits)
            .square()
            .mean()
            .sqrt()
        )

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6.2, 3.3))
for (name, values), color, marker in zip(
    loss.items(), (figures.BLUE, figures.RED), ("o", "s"), strict=True
):
    ax.loglog(axis, values, marker=marker, color=color, linestyle="-", label=name)
ax.loglog(axis, axis, color="0.5", linestyle="--", label="doing nothing")
ax.set(xlabel="σ", ylabel="error of a pixel (root mean square)", ylim=(1e-2, 3))
ax.legend(fontsize=9)
figures.show(
    fig,
    alt="Root mean square error of the ideal denoiser on digits against the noise "
    "level. Above σ = 2 training and held-out digits agree; below 1 the training "
    "error drops to zero and the held-out error stays near 0.3, above doing nothing "
    "for σ below 0.3.",
)

# %% [markdown]
r"""
Now generate. Each row starts from pure noise; the columns are $D(z_\sigma; \sigma)$ along the flow, then the sample and the training digit next to it.
"""

# %%
noise = torch.randn(
    pick(smoke=50, laptop=500),
    8,
    8,
    dtype=torch.float64,
    generator=torch.Generator().manual_seed(5),
)
sigmas = karras_sigmas(32, 0.01, 40.0)
*states, born = sample(digit_denoiser, 40 * noise, sigmas)
closest = torch.cdist(born.flatten(1), train.flatten(1)).argmin(-1)

chosen, rows = (0, 9, 13, 16, 18, 20, 23), (2, 6, 13)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(3, len(chosen) + 2, figsize=(7.2, 2.7))
for row, k in enumerate(rows):
    guesses = [digit_denoiser(states[i][k], sigmas[i].item()) for i in chosen]
    for ax, picture in zip(
        axes[row], [*guesses, born[k], train[closest[k]]], strict=True
    ):
        ax.imshow(picture, cmap="gray_r", vmin=-1, vmax=1)
        ax.axis("off")
for ax, title in zip(
    axes[0], [f"{sigmas[i]:.2g}" for i in chosen] + ["sample", "datum"], strict=True
):
    ax.set_title(title, loc="center", fontsize=9)
figures.show(
    fig,
    alt="Three digits emerge from noise: the denoiser's guess at noise levels from 40 "
    "to about 0.25 goes from one blurred mean to a sharp digit, then the finished "
    "sample and the nearest training digit, which is the same picture.",
)

# %% tags=["check"]
gap = (born - train[closest]).abs().amax((1, 2))
print(
    f"{len(born)} samples: {len(closest.unique())} different digits; "
    f"{(gap < 1e-6).double().mean():.1%} equal a training digit"
)
assert (gap < 1e-6).double().mean() > 0.95

# %% [markdown]
r"""
## Exercises

### Exercise 2.1 · The language of noise (★, 10 min)

Most networks predict the noise. Write $\hat\epsilon$, for a variance-preserving input $z_t = \sqrt{\bar\alpha}\, y + \sqrt{1 - \bar\alpha}\, n$, given a denoiser in our form; `alpha_bar` is a number, `z_t` a float64 tensor (n, d). The paper's formula below Eq. 16 has $(z_t - D^*)/\sigma_t$ in this place: what is missing? (That formula also lacks "$- \epsilon$"; chapter 03 shows what this costs.)
"""


# %% tags=["exercise"]
def predict_noise(denoise, z_t, alpha_bar):
    raise NotImplementedError  # your code


checks.noise_prediction(predict_noise)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def predict_noise(denoise, z_t, alpha_bar):
    # D estimates y, but z_t contains √ᾱ y: the paper's D* needs a factor α = √ᾱ.
    alpha, beta = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return (z_t - alpha * denoise(z_t / alpha, beta / alpha)) / beta


checks.noise_prediction(predict_noise)

# %% [markdown]
r"""
### Exercise 2.2 · Heun's step (★★, 10 min)

Write one step of Heun's method for (M2.5) from the level `here` down to `there` > 0, both plain numbers. Why can the last step, to $\sigma = 0$, not be a Heun step?
"""


# %% tags=["exercise"]
def heun_step(denoise, z, here, there):
    raise NotImplementedError  # your code


checks.heun_step(heun_step)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def heun_step(denoise, z, here, there):
    slope = (z - denoise(z, here)) / here
    trial = z + (there - here) * slope
    slope_there = (
        trial - denoise(trial, there)
    ) / there  # divides by `there`: no slope at σ = 0
    return z + (there - here) * (slope + slope_there) / 2


checks.heun_step(heun_step)

# %% [markdown]
r"""
### Exercise 2.3 · Where should the sampler stop? (★★, 20 min)

A sampler that stops too early blurs, too late it copies. Choose $\sigma_{\min}$ by asking each datum how likely *the others* find it. Write `leave_one_out(data, sigma)`: for each of the M data (M, d), the logarithm of the kernel density of all other data at that point, with all constants. The solution then picks the best $\sigma_{\min}$ for our 400 points and compares the densities on fresh points.
"""


# %% tags=["exercise"]
def leave_one_out(data, sigma):
    raise NotImplementedError  # your code


checks.leave_one_out(leave_one_out)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def leave_one_out(data, sigma):
    M, d = data.shape
    exponent = -torch.cdist(data, data).square() / (2 * sigma**2)
    exponent.fill_diagonal_(-math.inf)
    return (
        exponent.logsumexp(-1)
        - math.log(M - 1)
        - d / 2 * math.log(2 * math.pi * sigma**2)
    )


checks.leave_one_out(leave_one_out)
candidates = torch.logspace(-2.5, -0.5, 41).tolist()
best = max(candidates, key=lambda sigma: leave_one_out(data, sigma).mean().item())
print(f"best σ_min {best:.3f}: mean −log p_σ on fresh points")
for sigma in (best / 4, best, 4 * best):
    print(
        f"  σ_min = {sigma:.3f}: "
        f"{-empirical.log_prob(p.sample(4000, generator=generator), sigma).mean():.3f}"
    )

# %% [markdown]
r"""
### Exercise 2.4 · The denoiser knows its own doubt (★★★, 20 min)

Show by differentiating (M2.4) that $\sigma^2\, \partial D^*/\partial z = \operatorname{Cov}[y \mid z]$, the covariance of the data under the attention weights. Then write `posterior_covariance(z, data, sigma)` from the weights alone, (n, d) to (n, d, d); the checker differentiates. With it, look for the point and level where (M2.9) amplifies most.
"""


# %% tags=["exercise"]
def posterior_covariance(z, data, sigma):
    raise NotImplementedError  # your code


checks.posterior_covariance(posterior_covariance)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def posterior_covariance(z, data, sigma):
    # ∂w_i/∂z = w_i (y_i − D)/σ², so σ² ∂D/∂z = Σ w_i y_i (y_i − D)ᵀ;
    # Σ w_i (y_i − D) = 0 lets us subtract D from the first y_i, too.
    weight = (-torch.cdist(z, data).square() / (2 * sigma**2)).softmax(-1)
    residual = data - (weight @ data)[:, None]
    return torch.einsum("ni,nij,nik->njk", weight, residual, residual)


checks.posterior_covariance(posterior_covariance)
grid = figures.lattice(61, 1.2)
for sigma in (0.3, 0.1, 0.03):
    growth = (
        torch.linalg.eigvalsh(posterior_covariance(grid, data[:64], sigma))[:, -1]
        / sigma**2
        - 1
    )
    print(
        f"σ = {sigma}: deviations grow by e^(rate·Δln σ), largest rate "
        f"{growth.max():.1f}; on {(growth > 0).double().mean():.0%} of the grid"
    )

# %% [markdown]
r"""
### Open task 2 · A denoiser that cannot memorise

$D^*$ compares whole images. Build one for the digits that compares *patches*: for every pixel, attention over all 3 × 3 (or 5 × 5) patches of all training digits, and the centre pixel of the patch as value. It is still ideal, under a constraint that a convolutional network obeys. Are its samples new? Are they digits? Plot novelty (distance to the nearest datum) against quality (a classifier's confidence) as the patch grows from 1 × 1 to 8 × 8; [Kamb and Ganguli (2025)](https://arxiv.org/abs/2412.20292) suggests what to expect.
"""

# %% [markdown]
r"""
## Take-aways

- Noise convolves; Tweedie turns the gradient of the blurred density into a denoiser: $D(z; \sigma) - z = \sigma^2 \nabla \log p_\sigma(z)$.
- For a training set, the ideal denoiser, a mean-shift step with bandwidth $\sigma$, and one attention read over the data are the same number.
- A sampler takes the fraction $1 - \sigma'/\sigma$ of the mean-shift step while $\sigma$ falls; whole steps climb to a mode.
- DDIM is Euler in $\sigma$. Orders 1 and 2 are measurable, also where trajectories end on single data. The flow downwards is not stiff, it is sensitive at watersheds.
- $D^*$ generates its training set plus noise of size $\sigma_{\min}$. A good likelihood does not prove good samples.

## What's next

Chapter 03 asks for one *point* that a diffusion model likes, and looks at the field's usual answer, score distillation sampling: it uses the same $D$ at a noisy version of the point, and the price of that will be measured.
"""
