# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""
# Train a denoiser and find its errors

You will train a network of 17 000 weights to denoise the fractal, and map where it is right and where it only sounds sure. $D_\theta$ takes the place of $D$, and the truth stays at hand to judge it.

*Reading and exercises: 95 minutes, 40 of them for the exercises. Computing: about five minutes on one CPU core the first time, half of it for training networks that are then kept; half a minute at `smoke`. Before this: chapters 02, 04 and 06.*
"""

# %% [markdown]
r"""
## What you'll learn

- train a denoiser as the gradient of a learned log-density, and say what its loss measures;
- separate the error of learning from the noise of the target, by Pythagoras;
- map the error over position and noise level, and tell which inputs are out of distribution in a plane and which only in many dimensions;
- decide by measurement whether sampling a product beats one call of a learned denoiser;
- use a bad network to improve a good one, and see where that stops.
"""

# %%
import math

import matplotlib.pyplot as plt
import torch
from tqdm.auto import tqdm

from msd_teach import MSD, SDS, IdealDenoiser, MeanShift, distill, guided
from msd_teach.files import cache_folder
from msd_teach.lesson import checks, figures
from msd_teach.lesson.budget import NAME, pick
from msd_teach.plane.densities import (
    GaussianMixture,
    eight_gaussians,
    fractal,
    pinwheel,
)
from msd_teach.plane.landscape import least_squares_potential
from msd_teach.plane.learned import EXPONENT, LearnedDenoiser, train_denoiser, training

figures.use_style()

# %%
from msd_teach.product import sample_product
from msd_teach.runs import records, tables
from msd_teach.sampling import karras_sigmas, sample
from msd_teach.schedules import (
    annealed,
    dreamfusion_weight,
    linear,
    uniform_time,
    unit_weight,
)

# %% [markdown]
r"""
## A network that is a gradient

A network could learn the denoiser's arrows. [Karras et al. (2024)](https://arxiv.org/abs/2406.02507) let theirs learn a number instead, an unnormalised log-density, and differentiate it:

$$
\begin{aligned}
\log p_\theta(z; \sigma) &= \frac{g}{64\,\sigma}\,|F_\theta|^2 - \frac{|z|^2}{2(\sigma^2 + \frac14)}, \cr
D_\theta(z; \sigma) &= z + \sigma^2\,\nabla_z \log p_\theta(z; \sigma).
\end{aligned} \tag{M7.1}
$$

The gain $g$ starts at 0. What is $D_\theta$ then? The second term is the log-density of a Gaussian of variance $\frac14$ an axis, blurred by $\sigma$, so training starts from the Gaussian denoiser $z/(1 + 4\sigma^2)$ and has only the rest to learn.

<details>
<summary>Aside: the layers of F</summary>

$F_\theta$ has five: from $z/\sqrt{\sigma^2 + \frac14}$, $\frac14\ln\sigma$ and a constant 1 to 64 numbers, then four times SiLU and a $64\times64$ matrix. Two details keep the signals at size 1 without any normalisation layer: every row of a matrix is divided by its length, and SiLU by 0.596, its root mean square on normal input.

</details>

The true $D$ is one (Tweedie), and so is $D_\theta$, whatever its weights are. Errors can make its density wrong; they cannot make it circulate.
"""

# %% tags=["check"]
generator = torch.Generator().manual_seed(0)


def jacobian(denoise, z, sigma):
    """∂D/∂z at points z (n, d), (n, d, d)."""
    z = z.clone().requires_grad_()
    v = denoise(z, sigma)
    rows = [
        torch.autograd.grad(v[:, i].sum(), z, retain_graph=True)[0]
        for i in range(z.shape[1])
    ]
    return torch.stack(rows, dim=1)


fresh = LearnedDenoiser(generator=generator).requires_grad_(False)
z = torch.randn(200, 2, dtype=torch.float64, generator=generator)
start = max(
    (fresh(z, s) - z / (1 + 4 * s**2)).abs().max().item() for s in (0.01, 0.3, 4.0)
)
fresh.gain.fill_(1.0)
J = jacobian(fresh, z, 0.3)
turn = (J[:, 0, 1] - J[:, 1, 0]).abs().max() / J.abs().max()
print(f"gain 0, against z/(1 + 4σ²): max error {start:.1e}")
print(
    f"random weights: |∂D₁/∂z₂ − ∂D₂/∂z₁| at most {turn:.1e} of the largest derivative"
)
assert start < 1e-5
assert turn < 1e-5

# %% [markdown]
r"""
## What the loss measures

The toy has a luxury: $\nabla \log p_\sigma$ is known. So the network is trained on

$$
L(\theta) = \mathbb E_{\sigma, z}\Bigl[\sigma^2\,\bigl|\nabla\log p_\theta(z; \sigma) - \nabla\log p_\sigma(z)\bigr|^2\Bigr]
= \mathbb E_{\sigma, z}\Bigl[\frac{|D_\theta - D|^2}{\sigma^2}\Bigr], \tag{M7.2}
$$

with $z = y + \sigma n$ and $\ln\sigma \sim \mathcal N(-2.3,\, 1.5^2)$: the error of the denoiser in units of the noise. With images nobody knows $D$, and one regresses on the clean sample $y$ itself. That this works is Pythagoras. For fixed $z$ the posterior noise $y - D$ has mean zero, so it is orthogonal to any function of $z$,

$$
\mathbb E\,|D_\theta(z; \sigma) - y|^2 = \mathbb E\,|D_\theta - D|^2 + \mathbb E\,|D - y|^2. \tag{M7.3}
$$

Both losses have the same minimiser ([Vincent, 2011](https://doi.org/10.1162/NECO_a_00142)). The second term is a constant of the data. It cannot be trained away, and it hides the first: the check prints how much of what a training curve for images would show is error.

<details>
<summary>Aside: the average of the weights, and the recipe</summary>

Weights that Adam leaves behind are restless, so the network that we use is an average over the end of the training. With a power of time as its profile,

$$
\bar\theta(T) = \frac{\gamma + 1}{T^{\gamma+1}} \int_0^T t^\gamma\,\theta(t)\,\mathrm dt, \qquad
\bar\theta_t = \beta_t\,\bar\theta_{t-1} + (1 - \beta_t)\,\theta_t, \tag{M7.4}
$$

where $\beta_t = (1 - 1/t)^{\gamma+1}$, this is the power-function average of [Karras et al. (2024)](https://arxiv.org/abs/2312.02696). It needs no final time, forgets the start, and scales with the length of the run. $\gamma = 97$ makes its standard deviation one per cent of the run.

The recipe: 4096 steps of Adam with 4096 points each, learning rate $10^{-2}$, falling with the root of the step from step 512 on. One liberty: the exact score of 1016 components is dearer than a step of the network, so a point serves eight times, and 256 points share one $\sigma$, drawn anew every 512 steps. On a smaller run this changed the errors by less than another seed did.

</details>

We train one strong network, and a weak one for later.
"""

# %%
p = fractal("A")
recipe = pick(
    smoke={"iterations": 400, "batch": 512}, laptop={"iterations": 4096, "batch": 4096}
)
kept = cache_folder("denoisers")
rounds = -(-recipe["iterations"] // 512)
for record in tqdm(
    training(p, **recipe, cache=kept), total=rounds, desc="training", leave=False
):
    strong = record.denoiser
weak = train_denoiser(
    p,
    width=32,
    iterations=pick(smoke=100, laptop=512),
    batch=pick(smoke=256, laptop=4096),
    cache=kept,
)
weights = sum(parameter.numel() for parameter in strong.parameters())
print(
    f"{weights} weights, γ = {EXPONENT:.1f}, {record.iteration} iterations of "
    f"{recipe['batch']} points"
)

# %% tags=["check"]
sigma, count = 0.1, pick(smoke=20_000, laptop=200_000)
y = p.sample(count, generator=generator)
z = y + sigma * torch.randn(y.shape, dtype=y.dtype, generator=generator)
with torch.no_grad():
    learned, true = strong(z, sigma), p.denoise(z, sigma)
denoising, learning, posterior = (
    t.square().sum(-1) for t in (learned - y, learned - true, true - y)
)
cross = denoising - learning - posterior
deviation = (cross.mean() / (cross.std() / count**0.5)).abs()
print(
    f"σ = 0.1: E|D_θ − y|² = {denoising.mean():.6f}, of which error "
    f"{learning.mean():.6f}, noise {posterior.mean():.6f}"
)
print(
    f"(M7.3) holds up to {cross.mean():.1e}, {deviation:.1f} standard errors; error "
    f"is {learning.mean() / denoising.mean():.2%} of the loss"
)
assert deviation < 4

# %% [markdown]
r"""
At σ = 0.1 well under one per cent of the denoising loss is error that training could still remove. A loss curve that looks flat says little about $D_\theta - D$.

**Predict.** At which noise levels will the network be worst, relative to $\sigma$? And $D^*$, the ideal denoiser of $10^4$ data: it is exact for its data, but the data are not the density. Where do the two cross?
"""

# %%
scales = (10 ** torch.linspace(-2.7, 0.7, pick(smoke=8, laptop=18))).tolist()
ideal = IdealDenoiser(p.sample(pick(smoke=1000, laptop=10_000), generator=generator))
mean, variance = y.mean(0), y.T.cov()


def gaussian(z, sigma):
    blurred = variance + sigma**2 * torch.eye(2)
    return mean + (z - mean) @ torch.linalg.inv(blurred) @ variance


def typical_error(denoise, sigma):
    """Root mean square of |D − truth|/σ at z = y + σn."""
    z = p.sample(pick(smoke=500, laptop=4000), sigma, torch.Generator().manual_seed(1))
    with torch.no_grad():
        wrong = denoise(z, sigma) - p.denoise(z, sigma)
    return wrong.square().sum(-1).mean().sqrt().item() / sigma


candidates = {"Gaussian": gaussian, "weak network": weak, "network": strong}
candidates["ideal, data"] = ideal
errors = {
    name: [typical_error(denoise, s) for s in scales]
    for name, denoise in candidates.items()
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6.8, 3.6))
order = (figures.BLACK, figures.ORANGE, figures.BLUE, figures.RED)
for (name, values), color, line, marker in zip(
    errors.items(), order, (":", "-.", "-", "--"), "voDs", strict=True
):
    ax.loglog(
        scales,
        values,
        color=color,
        linestyle=line,
        marker=marker,
        markersize=4,
        label=name,
    )
law = [math.exp(-((math.log(s) + 2.3) ** 2) / (2 * 1.5**2)) for s in scales]
ax.fill_between(
    scales,
    1e-3,
    [1e-3 * 5**f for f in law],
    color="0.85",
    linewidth=0,
    label="levels in training",
)
ax.set(
    xlabel="noise level σ",
    ylabel="error of D / σ",
    ylim=(1e-3, 3),
    xlim=(scales[0], scales[-1]),
)
fig.legend(
    fontsize=9, ncols=5, loc="outside upper center", columnspacing=1.2, handlelength=2.2
)
figures.show(
    fig,
    alt="Root mean square error of four denoisers on typical inputs, in units of σ, "
    "against σ, log scales. The network's error has its largest value near σ = 0.01; "
    "that of the ideal denoiser grows towards small σ and crosses it there. From σ = "
    "1 on the Gaussian beats both networks.",
)

# %% tags=["check"]
total = {name: sum(v * v for v in values) ** 0.5 for name, values in errors.items()}
print(
    "error over all levels:",
    ", ".join(f"{name} {value:.2f}" for name, value in total.items()),
)
print(
    f"at σ = {scales[0]:.3f}: network {errors['network'][0]:.2f}, ideal denoiser of "
    f"the data {errors['ideal, data'][0]:.2f}"
)
assert total["network"] < total["weak network"] < total["Gaussian"]
assert errors["network"][0] < errors["ideal, data"][0]

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The network is worst, 0.31 σ, near $\sigma = 0.01$: there the noise is as wide as the twigs. Down to a level of about 0.008, within the widths of the branches (0.004 to 0.016), $D^*$ is better; below, the network is.

</details>

At the smallest levels $D^*$ sees single points where there is a density, with an error as large as the noise itself: it **memorises**. The network has no points to memorise and interpolates. This is the good side of learning, and in high dimensions the reason why diffusion models create anything at all ([Kamb and Ganguli, 2025](https://arxiv.org/abs/2412.20292)).

<details>
<summary>Aside: large noise</summary>

From $\sigma = 1$ on the best Gaussian, a formula with five numbers, beats both networks: the levels there are rare in training, and a loss in units of $\sigma$ calls 0.03 small. In absolute terms it is 0.14 at $\sigma = 5$, 26 times the error at $\sigma = 0.03$.

</details>
"""

# %% [markdown]
r"""
## A map of the error

So far we asked about inputs like those in training, $z = y + \sigma n$, which fill the *typical set* of $p_\sigma$. Distillation asks elsewhere. A point $x$ starts anywhere in the plane, and mean shift wants $D_\theta(x; \lambda)$ for a small $\lambda$.

**Predict.** Below is the relative error $|D_\theta - D|/|D - x|$ of the mean shift for three bandwidths. The contour encloses 99 per cent of the training inputs of that level. How good is the answer far outside?
"""

# %%
n, levels = pick(smoke=40, laptop=140), (0.3, 0.1, 0.03)
lattice = figures.lattice(n)
maps, inside = {}, {}
for level in levels:
    with torch.no_grad():
        truth, guess = (
            p.denoise(lattice, level) - lattice,
            strong(lattice, level) - lattice,
        )
    edge = p.log_prob(p.sample(2000, level, generator), level).quantile(0.01)
    inside[level] = p.log_prob(lattice, level) > edge
    maps[level] = (guess - truth).norm(dim=-1) / truth.norm(dim=-1)
    out = ~inside[level]
    cosine = torch.cosine_similarity(guess, truth, dim=-1)[out].median()
    length = (guess.norm(dim=-1) / truth.norm(dim=-1))[out].median()
    print(
        f"λ = {level}: median error {maps[level][inside[level]].median():3.0%} "
        f"inside, {maps[level][out].median():3.0%} outside;",
        end=" ",
    )
    print(f"step there {length:.2f} of its length, cosine {cosine:.3f}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes([f"λ = {level}" for level in levels], width=7.6)
for ax, level in zip(axes, levels, strict=True):
    extent = (-1.5, 1.5, -1.5, 1.5)
    look = {"origin": "lower", "extent": extent}
    image = ax.imshow(maps[level].reshape(n, n), cmap="cividis", vmin=0, vmax=1, **look)
    ax.contour(
        inside[level].double().reshape(n, n),
        [0.5],
        colors="white",
        linewidths=1.2,
        **look,
    )
fig.colorbar(
    image,
    ax=list(axes),
    label="error of the mean shift",
    shrink=0.75,
    ticks=(0, 0.5, 1),
    extend="max",
)
figures.show(
    fig,
    alt="Relative error of the network's mean shift over the plane for bandwidths "
    "0.3, 0.1 and 0.03, in colour from 0 to 1, with a white contour around the inputs "
    "seen in training. Inside it is mostly dark; outside it rises towards 1, the "
    "sooner the smaller λ.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Bad, the sooner the smaller λ. Inside, the median error is 2, 7 and 20 per cent for the three bandwidths. Outside it is 7, 42 and 74: the network's step there is too short, with 0.29 of its length at $\lambda = 0.03$.

</details>

There is the out-of-distribution gap, and it has the shape of the contour. The truth is simple there, $D$ is the nearest piece of the tree, but the network has seen nothing of it. The *direction* survives much better, as the cosine says. A method that uses only directions will hardly notice the gap, and Adam is such a method.

## Is a clean point out of distribution?

Mean shift asks about a point without noise. "The network was trained on $z = y + \lambda n$, so a clean $x$ is out of distribution": [Wang et al. (2023)](https://arxiv.org/abs/2212.00774) raise this objection, and answer it by adding noise. The paper expects it of a high-dimensional space, too. Put inputs $y + \rho\,\sigma n$ before the network and tell it $\sigma$: the **noise share** $\rho$ is 1 in training and 0 for a clean point.

**Predict** the error as a function of $\rho$. Then think of the length of $n$ in $d$ dimensions,

$$
\frac{|n|}{\sqrt d} = 1 \pm \frac{1}{\sqrt{2d}}, \tag{M7.5}
$$

and predict again for $d = 32$.
"""


# %%
def embedded(d, thin=0.02):
    """Eight Gaussians on a ring in two of d dimensions, `thin` in all others."""
    ring = eight_gaussians()
    means, covariances = torch.zeros(8, d), thin**2 * torch.eye(d).repeat(8, 1, 1)
    means[:, :2], covariances[:, :2, :2] = ring.means / 2, ring.covariances / 4
    return GaussianMixture(ring.weights, means, covariances)


def share_errors(mixture, denoise, sigma, shares):
    """Root mean square error an axis, over σ, of inputs y + ρσn for every share ρ."""
    count = pick(smoke=200, laptop=2000)
    y = mixture.sample(count, generator=torch.Generator().manual_seed(2))
    n = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
    inputs = y + sigma * shares[:, None, None] * n
    with torch.no_grad():
        wrong = denoise(inputs, sigma) - mixture.denoise(inputs, sigma)
    return wrong.square().mean((1, 2)).sqrt() / sigma


# %%
shares = torch.linspace(0, 2, pick(smoke=9, laptop=21), dtype=torch.float64)
in_plane = {level: share_errors(p, strong, level, shares) for level in (0.3, 0.1, 0.03)}
small = {"iterations": pick(smoke=60, laptop=512)}
small["batch"] = pick(smoke=128, laptop=1024)
networks, in_space = {}, {}
for d in tqdm((2, 8, 32), leave=False):
    networks[d] = train_denoiser(embedded(d), **small, cache=kept)
    in_space[d] = share_errors(embedded(d), networks[d], 0.3, shares)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, panels = plt.subplots(1, 2, figsize=(7.4, 3.5), sharex=True, sharey=True)
titles = ("fractal, in the plane: error / σ", "eight Gaussians, σ = 0.3: error / σ")
groups = (
    {f"σ = {level}": v for level, v in in_plane.items()},
    {f"{d} dimensions": v for d, v in in_space.items()},
)
for ax, title, group, shift in zip(panels, titles, groups, (0, 3), strict=True):
    for i, (name, values) in enumerate(group.items()):
        style = {
            "color": figures.PALETTE[i + shift],
            "linestyle": figures.LINES[i],
            "marker": figures.MARKERS[i],
        }
        ax.semilogy(shares, values, label=name, markersize=3.5, **style)
    ax.axvline(1, color="0.75", linewidth=0.8, linestyle="-")
    ax.set(title=title, xlabel="noise share ρ of the input", ylim=(0.01, 1.5))
    ax.legend(fontsize=9, loc="upper left")
figures.show(
    fig,
    alt="Error of the network against the share of noise in its input, log scale. "
    "Left, on the fractal in the plane, clean inputs have the smallest error at every "
    "level. Right, eight Gaussians in 2, 8 and 32 dimensions: in 32 the error has a "
    "dip at share 1.",
)

# %% tags=["check"]
for d, values in in_space.items():
    lengths = (
        torch.randn(20_000, d, dtype=torch.float64, generator=generator).norm(dim=1)
        / d**0.5
    )
    spread = lengths.std() * (2 * d) ** 0.5
    half, one, more = (
        values[(shares - s).abs().argmin()].item() for s in (0.5, 1.0, 1.5)
    )
    print(
        f"d = {d:2}: √(2d) × deviation of |n|/√d = {spread:.3f}; error at ρ = ½, 1, "
        f"1½: {half:.3f}, {one:.3f}, {more:.3f}"
    )
assert abs(spread - 1) < 0.03
assert NAME == "smoke" or half > one < more  # the dip, d = 32
plane = in_plane[0.3]
assert plane[0] < plane[(shares - 1).abs().argmin()] < plane[-1]

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

In the plane the error is smallest at ρ = 0: the density of $n$ is largest there, and a clean point lies in the *middle* of what the network has seen. In 32 dimensions all noise has nearly the same length, a shell with a hole in it, and the error dips at ρ = 1.

</details>

So in the plane out of distribution means off the density, as on the map, and nothing else. In many dimensions the network learns the shell, and the error grows on both sides of it, inwards as well. The dip is as deep at $\sigma = 1$ and all but gone on its inner side at $\sigma = 0.1$. On images $d$ is many thousands, and the shell is thin.

So how much noise does the exact sampler of chapter 04 put before the network? Its first argument is $(\lambda^2 z + \sigma^2 x)/(\lambda^2+\sigma^2)$, and it claims the level $\lambda\sigma/\sqrt{\lambda^2+\sigma^2}$. With $z = y + \sigma n$ and a *clean* $x = y$ the noise in it is $\lambda^2\sigma n/(\lambda^2+\sigma^2)$, so

$$
\rho = \frac{\lambda}{\sqrt{\lambda^2 + \sigma^2}}: \tag{M7.6}
$$

0.02 at $\sigma = 50\lambda$, 0.32 at $3\lambda$, 0.89 at $\lambda/2$. The sampler begins with the question that mean shift asks, and ends with questions from the training set.
"""

# %% [markdown]
r"""
### Exercise 7.1 · How much noise is in it? (★★, 15 min)

(M7.6) is for a clean $x$. Let $x = y + \tau n'$ carry noise of its own, independent of $n$. Write `noise_share(bandwidth, sigma, own)`, numbers to a number: the standard deviation of the noise in the product denoiser's first argument over the level that it claims, with $\tau$ = `own`. For which $\tau$ is the input right at every $\sigma$? What happens to a point that starts far from the density?
"""


# %% tags=["exercise"]
def noise_share(bandwidth, sigma, own):
    raise NotImplementedError  # your code


checks.noise_share(noise_share)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def noise_share(bandwidth, sigma, own):
    total = bandwidth**2 + sigma**2
    found = math.hypot(bandwidth**2 * sigma, sigma**2 * own) / total
    claimed = bandwidth * sigma / total**0.5
    return found / claimed


checks.noise_share(noise_share)
for own in (0.0, 0.1, 0.3):
    row = ", ".join(
        f"{noise_share(0.1, sigma, own):.2f}" for sigma in (5.0, 0.3, 0.1, 0.05)
    )
    print(f"λ = 0.1, x with noise {own}: share at σ = 5, 0.3, 0.1, 0.05: {row}")

# %% [markdown]
r"""
At $\tau = \lambda$, and only there. A point farther out than its bandwidth, $\tau > \lambda$, asks for too much noise; that is the start of a distillation, and the bright outside of the map.

## A covariance that is none

For the true $D$ the Jacobian is a covariance, $\operatorname{Cov}_q = \lambda^2\,\partial D/\partial x$ (M4.5). The network's Jacobian is symmetric, as we saw. Is it a covariance? And if we sample the product with $D_\theta$, is *its* covariance the one that the samples have?

**Predict.** Which of three ellipses agree: the truth, $\lambda^2\,\partial D_\theta/\partial x$, and the samples drawn with $D_\theta$?
"""

# %%
bandwidth, steps = 0.1, karras_sigmas(pick(smoke=8, laptop=24), 0.002, 5.0)
x = p.sample(pick(smoke=20, laptop=60), bandwidth, generator)
draws = pick(smoke=32, laptop=640)


def product_samples(denoise, x, draws, bandwidth=bandwidth):
    """Exact-kernel samples around every x (n, d): (draws, n, d)."""
    stack = x.expand(draws, *x.shape)
    *_, y = sample_product(
        denoise, stack, bandwidth, steps, "exact", generator=generator
    )
    return y


def covariance(y):
    """Covariance at every x, (n, d, d), of samples (draws, n, d)."""
    deviation = y - y.mean(0)
    return torch.einsum("kni,knj->nij", deviation, deviation) / (len(y) - 1)


true_J, learned_J = (
    bandwidth**2 * jacobian(denoise, x, bandwidth) for denoise in (p.denoise, strong)
)
true_C, learned_C = (
    covariance(product_samples(denoise, x, draws)) for denoise in (p.denoise, strong)
)

# %% tags=["check"]
indefinite = (torch.linalg.eigvalsh(learned_J)[:, 0] < 0).double().mean()
found = {
    "true: samples − λ²∂D/∂x": (true_C - true_J).norm() / true_J.norm(),
    "learned: samples − λ²∂D_θ/∂x": (learned_C - learned_J).norm() / learned_J.norm(),
    "λ²∂D_θ/∂x − truth": (learned_J - true_J).norm() / true_J.norm(),
    "learned samples − truth": (learned_C - true_J).norm() / true_J.norm(),
}
for name, value in found.items():
    print(f"{name:30} {value:.2f} of the norm")
print(
    f"λ²∂D_θ/∂x has a negative variance at {indefinite:.0%} of the points; true D: "
    f"{torch.linalg.eigvalsh(true_J).min():.1e} at least"
)
noise = (
    2 / draws
) ** 0.5 * 2  # twice the relative error of a variance from so many draws
assert found["true: samples − λ²∂D/∂x"] < noise
assert torch.linalg.eigvalsh(true_J).min() > 0

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (ax,) = figures.planes(
    ["the product's covariance, one standard deviation"], width=4.6
)
ax.set(xlim=(-0.75, 1.55), ylim=(-0.7, 1.6))
figures.density(ax, p)
centres, chosen = (
    p.denoise(x, bandwidth),
    [int(torch.linalg.eigvalsh(learned_J)[:, 0].argmin())],
)
while len(chosen) < 9:  # the flattest, then always the point farthest from those chosen
    chosen.append(int(torch.cdist(centres, centres[chosen]).amin(1).argmax()))
circle = torch.linspace(0, 2 * math.pi, 80, dtype=torch.float64)
circle = torch.stack([circle.cos(), circle.sin()])
kinds = {
    "truth": (true_J, figures.BLACK, "-"),
    "λ² ∂Dθ/∂x": (learned_J, figures.BLUE, "--"),
}
kinds["samples with Dθ"] = (learned_C, figures.RED, ":")
for name, (matrices, color, line) in kinds.items():
    for centre, matrix in zip(centres[chosen], matrices[chosen], strict=True):
        values, axes = torch.linalg.eigh((matrix + matrix.T) / 2)
        edge = centre[:, None] + axes @ (values.clamp(min=0).sqrt()[:, None] * circle)
        ax.plot(*edge, color=color, linestyle=line, linewidth=1.4)
    ax.plot([], [], color=color, linestyle=line, label=name)
ax.legend(loc="upper left", fontsize=9)
figures.show(
    fig,
    alt="Nine points on the fractal with ellipses of one standard deviation of the "
    "product density at λ = 0.1: the true covariance, the network's Jacobian times "
    "λ², and samples drawn with the network. Most agree to the width of a line; at "
    "one point on a twig the Jacobian's is flat.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The samples are closer to the truth than the Jacobian is, 0.08 against 0.13 of its norm, and most of their 0.08 is Monte-Carlo noise: with the true $D$ it is 0.07.

</details>

A derivative is harder to learn than a value: the loss (M7.2) does not look at the slope of $D_\theta$. At one point of the sixty the network even claims a negative variance, so there is no density at all whose denoiser it is. The efficiency of chapter 04 has the trace of this Jacobian in it.

## Does sampling pay?

With the true $D$ one call gives the mean that samples only estimate. Now both are wrong. Let $e$ be the error of the single call $D_\theta(x; \lambda)$, $b$ that of the product sampler's mean, and $v$ the variance of its samples. The mean of $N$ samples has the squared error $b^2 + v/N$, and beats the call from

$$
N > N^* = \frac{v}{e^2 - b^2} \tag{M7.7}
$$

on; never, where $b \ge e$. A sample costs dozens of calls, but let us not count them yet.

**Predict** $N^*$ for three kinds of $x$ in the plane: on the density, one bandwidth off it, and on a lattice. Then for 32 dimensions.
"""

# %%
most, Q = pick(smoke=16, laptop=64), pick(smoke=16, laptop=60)
counts = [1, 2, 3, 5, 10, 20, most]


def contest(mixture, denoise, x, bandwidth):
    """Over Σ|m|²: squared errors of a call and of means of N; their bias, variance."""
    truth = mixture.denoise(x, bandwidth)
    unit = (truth - x).square().sum()
    y = product_samples(denoise, x, most, bandwidth)
    v = y.var(0).sum()
    b2 = ((y.mean(0) - truth).square().sum() - v / most).clamp(min=0)
    with torch.no_grad():
        e2 = (denoise(x, bandwidth) - truth).square().sum()
    blocks = [torch.stack(y[: most - most % N].split(N)).mean(1) for N in counts]
    means = [(mean - truth).square().sum((-1, -2)).mean() / unit for mean in blocks]
    return {
        "call": e2 / unit,
        "means": torch.stack(means),
        "bias": b2 / unit,
        "variance": v / unit,
    }


# %%
def around(mixture, own):
    """Q points of the mixture, each with noise of standard deviation `own`."""
    y = mixture.sample(Q, generator=generator)
    return y + own * torch.randn(y.shape, dtype=y.dtype, generator=generator)


places = {
    "on the density": lambda λ: around(p, 0.0),
    "one bandwidth off": lambda λ: around(p, λ),
}
places["on the lattice"] = lambda λ: figures.lattice(pick(smoke=4, laptop=8))
ring = embedded(32)
played = {
    (where, λ): contest(p, strong, pick_x(λ), λ)
    for where, pick_x in tqdm(places.items(), leave=False)
    for λ in levels
}
for λ in levels:
    played["32 dimensions, ρ = ½", λ] = contest(
        ring, networks[32], around(ring, λ / 2), λ
    )

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 4, figsize=(7.8, 3.4), sharex=True, sharey=True)
for ax, where in zip(axes, dict.fromkeys(where for where, _ in played), strict=True):
    for λ, color, marker in zip(levels, figures.PALETTE, figures.MARKERS, strict=False):
        case = played[where, λ]
        ax.loglog(
            counts,
            case["means"].sqrt(),
            color=color,
            marker=marker,
            linestyle="-",
            label=f"mean, λ = {λ}",
        )
        ax.axhline(case["call"].sqrt(), color=color, linestyle="--", linewidth=1.2)
    ax.set_title(where, fontsize=9.5)
    ax.set_xticks([1, 10, most], ["1", "10", str(most)])
    ax.minorticks_off()
axes[0].set(ylabel="error / |m|", ylim=(0.01, 5))
fig.supxlabel("number N of samples", fontsize=10)
axes[0].plot(
    [], [], color="0.4", linestyle="--", linewidth=1.2, label="one call of Dθ(x; λ)"
)
fig.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside upper center",
    ncols=4,
    fontsize=9,
)
figures.show(
    fig,
    alt="Error of the mean of N samples, solid, and of the single call, dashed, "
    "relative to the mean shift, in four places. On the density and one bandwidth off "
    "it the call stays below up to N = 64. On the lattice and, at λ = 0.3, in 32 "
    "dimensions samples lie below the call from N = 1 or 3 on.",
)

# %% [markdown]
r"""
### Exercise 7.2 · Where the curves cross (★, 10 min)

Write `break_even(call_error, bias, variance)`: from numbers the smallest whole $N$ for which the mean of $N$ samples has a smaller expected squared error than the call, (M7.7); `math.inf` where there is none.
"""


# %% tags=["exercise"]
def break_even(call_error, bias, variance):
    raise NotImplementedError  # your code


checks.break_even(break_even)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def break_even(call_error, bias, variance):
    gain = call_error**2 - bias**2
    return math.floor(variance / gain) + 1 if gain > 0 else math.inf


checks.break_even(break_even)
print("call, bias, deviation of a sample (over |m|) → N*")
print(f"{'':20}" + "".join(f"{f'λ = {λ}':>25}" for λ in levels))
for where in dict.fromkeys(where for where, _ in played):
    cells = []
    for λ in levels:
        e, b, v = (float(played[where, λ][key]) for key in ("call", "bias", "variance"))
        cells.append(
            f"{e**0.5:.2f}, {b**0.5:.2f}, {v**0.5:.2f} → "
            f"{break_even(e**0.5, b**0.5, v)}"
        )
    print(f"{where:20}" + "".join(f"{cell:>25}" for cell in cells))

# %% tags=["check"]
worst, x = 0.0, figures.lattice(6)
unit = (p.denoise(x, 0.1) - x).square().sum()
first = contest(p, strong, x, 0.1)
again = product_samples(strong, x, 10 * pick(smoke=20, laptop=100))
for N in (1, 2, 5, 10):  # with other draws
    miss = again.unflatten(0, (-1, N)).mean(1) - p.denoise(x, 0.1)
    found = miss.square().sum((-1, -2)).mean() / unit
    worst = max(worst, abs(found / (first["bias"] + first["variance"] / N) - 1).item())
truthful = contest(p, p.denoise, around(p, 0.1), 0.1)
print(
    "b² + v/N against squared errors of other draws: max relative difference "
    f"{worst:.1e}"
)
print(
    f"true D: error of the call {truthful['call'].sqrt():.1e}, of one sample "
    f"{truthful['means'][0].sqrt():.2f}"
)
assert worst < pick(smoke=0.5, laptop=0.2)
assert truthful["call"] < 1e-20
near, far_off = played["one bandwidth off", 0.1], played["on the lattice", 0.03]
assert near["call"] < near["means"][3]
assert NAME == "smoke" or far_off["means"][0] < far_off["call"]

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Near the density hundreds or thousands, where the curves cross at all. On the lattice one to three. In 32 dimensions one at $\lambda = 0.3$, four at 0.1, thousands at 0.03.

</details>

Near the density the call is off by 3 to 27 per cent, and a single draw scatters by one to three times the shift that it should measure. At $\lambda = 0.03$ the sampler's own bias is about as large as the error of the call.

Off the density, on the lattice, the product is narrow compared with the way to it, so that a draw hardly scatters, and its mean is better than the call: 0.46 against 0.65 at $\lambda = 0.1$. Why better, if it begins by asking the same wrong question? By (M7.6) it does not go on asking it. The first levels carry $z$ some of the way; then the claimed noise falls, the input approaches the density, and the questions become those of training.

In 32 dimensions, with half of the noise that the network expects, the call at $\lambda = 0.3$ is wrong by 70 per cent of $|m|$, the sampler's mean by 9, and one draw with all its scatter by 43. Here **the first sample pays**. The paper's argument is right about this network in 32 dimensions, though the plane, where its tables were made, does not show it.

What remains is the price: a sample costs 48 calls here.
"""

# %% [markdown]
r"""
## Figure 3, the learned half

An error of the step is not yet an error of the result. The paper's Figure 3 shows both: samples after 150 steps of Adam at rate 0.08, and the landscapes in which they moved. Chapter 06 has drawn it for $D^*$; now $D_\theta$.

A landscape is a potential of the update's field. By (M7.1) mean shift with $D_\theta$ has the potential $-\lambda^2\log p_\theta(x; \lambda)$, and SDS has

$$
\mathcal L_\text{SDS}(x) = -\,\mathbb E_{\sigma,n}\bigl[w\,\sigma^2\,\log p_\theta(x + \sigma n; \sigma)\bigr], \tag{M7.8}
$$

for the reasons of (M3.2), word for word. The sampler's field has no formula; `least_squares_potential` finds its nearest potential, and says what is left over. On SDS, where both ways are open, the check compares them.
"""

# %%
other = pinwheel()
lighter = {"iterations": pick(smoke=150, laptop=1536)}
lighter["batch"] = pick(smoke=512, laptop=1024)
nets = {"fractal": strong, "pinwheel": train_denoiser(other, **lighter, cache=kept)}
mixtures = {"fractal": p, "pinwheel": other}
falling = linear(0.316 / math.sqrt(2), 0.003)
methods = {
    "SDS": SDS(samples=pick(smoke=2, laptop=8)),
    "SDS annealed": SDS(annealed(falling), unit_weight),
    "mean shift": MeanShift(falling),
    "MSD": MSD("exact", falling, karras_sigmas(16, 0.002, 5.0), solver="euler"),
}


def optimise(method, denoise, x):
    """The points x after 150 steps of Adam."""
    steps = pick(smoke=20, laptop=150)
    x = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.08)
    g = torch.Generator().manual_seed(1)
    for _ in distill(lambda _: x, optimizer, denoise, method, steps, generator=g):
        pass
    return x.detach()


# %%
lattice = figures.lattice(pick(smoke=5, laptop=13))
ends = {}
print(
    f"{'mean (median) −log p':20} {'entropy':>8}"
    + "".join(f"{name:>16}" for name in methods)
)
for where, mixture in tqdm(mixtures.items(), leave=False):
    data = IdealDenoiser(
        mixture.sample(pick(smoke=1000, laptop=10_000), generator=generator).float()
    )
    entropy = -mixture.log_prob(mixture.sample(20_000, generator=generator)).mean()
    for kind, denoise in (("D*", data), ("Dθ", nets[where])):
        cells = []
        for name, method in methods.items():
            ends[where, kind, name] = optimise(method, denoise, lattice)
            nll = -mixture.log_prob(ends[where, kind, name])
            cells.append(f"{nll.mean():7.2f} ({nll.median():5.2f}) ")
        print(f"{where + ', ' + kind:20} {entropy:8.2f}", "".join(cells))

# %%
side, spacing = pick(smoke=16, laptop=49), 3 / (pick(smoke=16, laptop=49) - 1)
view, N = figures.lattice(side), pick(smoke=32, laptop=96)
σ = uniform_time()((torch.arange(N, dtype=torch.float64) + 0.5) / N, 0.0)
w = dreamfusion_weight(σ)
noise = torch.randn(N, 1, 2, dtype=torch.float64, generator=generator)


@torch.no_grad()
def sds_landscape(net):
    """The mean SDS update (side, side, 2), and (M7.8) directly, from the same noise."""
    field, potential = torch.zeros_like(view), torch.zeros_like(view[:, 0])
    for s, weight, n in zip(σ.tolist(), w / (2 * N), noise, strict=True):
        for z in (view + s * n, view - s * n):  # in pairs: the sum of all noise is 0
            field += weight * (z - net(z, s))
            potential -= weight * s**2 * net.log_density(z, s)
    return field.reshape(side, side, 2), potential.reshape(side, side)


# %%
landscapes, left_over = {}, {}
for where, net in nets.items():
    field, direct = sds_landscape(net)
    found = least_squares_potential(field, spacing)
    landscapes[where, "SDS"] = found.potential
    gap = (found.potential - direct + direct.mean()).abs().max() / direct.std()
    left_over[where] = [found.residual, gap.item()]
    y = product_samples(net, view, pick(smoke=2, laptop=10), 0.1).mean(0)
    found = least_squares_potential((view - y).reshape(side, side, 2), spacing)
    landscapes[where, "MSD"] = found.potential
    left_over[where].append(found.residual)

# %% tags=["check"]
for where, (residual, difference, sampler) in left_over.items():
    print(
        f"{where}: SDS residual {residual:.3f}, largest difference to (M7.8) "
        f"{difference:.4f} of its deviation"
    )
    print(f"  MSD, λ = 0.1: residual {sampler:.2f}")
    assert difference < pick(smoke=0.1, laptop=0.02)

# %%
parts = [
    f"{where}: {what}"
    for where in mixtures
    for what in ("SDS", "landscape", "MSD", "landscape")
]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(parts, span=1.3, rows=2, width=7.8)
for row, where in zip(axes.reshape(2, 4), mixtures, strict=True):
    for (left, right), name, color in zip(
        row.reshape(2, 2), ("SDS", "MSD"), (figures.RED, figures.BLUE), strict=True
    ):
        figures.density(left, mixtures[where])
        φ = landscapes[where, name]
        ranks = φ.flatten().argsort().argsort().double().div(φ.numel()).reshape(φ.shape)
        look = {"extent": (-1.5, 1.5, -1.5, 1.5), "origin": "lower"}
        right.imshow(ranks, cmap="viridis", interpolation="bilinear", **look)
        right.contour(ranks, 14, colors="white", linewidths=0.4, **look)
        dots = {
            "marker": "^" if name == "MSD" else "o",
            "edgecolors": "white",
            "linewidths": 0.3,
        }
        for ax in (left, right):
            ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
            figures.points(
                ax, ends[where, "Dθ", name], color, size=12, alpha=0.9, **dots
            )
figures.show(
    fig,
    alt="For the fractal and the pinwheel: end points of SDS and MSD with the learned "
    "denoiser, on the density and on the landscape of their updates, low is dark. SDS "
    "has one basin near the middle, in a gap of the density; MSD has a branched one, "
    "and its points lie on the density.",
)

# %% [markdown]
r"""
The learned half looks like the ideal one. Fractal or pinwheel, every method ends within a tenth of a nat of where $D^*$ sends it, except SDS, which was never near the density and gains, four nats on the fractal and 0.3 on the pinwheel. Sampling does not pay here: mean shift ends lowest with $D_\theta$ as with $D^*$, for one call a step instead of 17. The out-of-distribution gap has cost nothing.

Three things hide it. The annealing begins with $\lambda = 0.22$, where the network is nearly right all over the square, and when $\lambda$ is small the points have arrived. Adam divides the length of a step away, and length is what is wrong. And $D_\theta$ is a gradient: it may climb a wrong density, but it climbs.
"""

# %% [markdown]
r"""
## Break it: the sign of one number

A fourth thing hides it: luck. Far out SiLU is either 0 or the identity, so $F_\theta$ grows linearly and $|F_\theta|^2/64 \to c\,|z|^2/(\sigma^2 + \frac14)$ with some $c > 0$ that depends on the direction only. By (M7.1)

$$
\log p_\theta(z; \sigma) \approx -\Bigl(\frac12 - \frac{g\,c}{\sigma}\Bigr)\frac{|z|^2}{\sigma^2 + \frac14}. \tag{M7.9}
$$

With a negative gain $g$ the log-density falls in all directions, whatever else is wrong. With a positive one it *rises* wherever $\sigma < 2 g c$: the network believes that the data lie at infinity. Inside the training set a gain of either sign will do, and the seed decides. The network above has a negative one. Here are two small ones of either kind.

**Predict.** Which of the methods lose points with the second network? Does sampling help them? ("MSD sum" is the paper's sampler, which adds the kernel's score to the model's; "full" and "chosen" name the interval of the kernel, all levels or those of least error in chapter 05.)
"""

# %%
quick = {"width": 32, "iterations": 300, "batch": 256}
small_nets = [train_denoiser(p, **quick, seed=seed, cache=kept) for seed in (1, 4)]
pair = {f"g = {net.gain.item():+.2f}".replace("-", "−"): net for net in small_nets}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(
    [f"{name}: Dθ(x; 0.1) − x" for name in pair], span=2.5, width=7.0
)
view, turned = figures.lattice(17, 2.4), {}
for ax, (name, net) in zip(axes, pair.items(), strict=True):
    figures.density(ax, p)
    with torch.no_grad():
        m = net(view, 0.1) - view
    away = (m * (p.denoise(view, 0.1) - view)).sum(-1) < 0
    turned[name] = away.double().mean()
    figures.arrows(ax, view[~away], m[~away], figures.BLUE, length=0.2)
    figures.arrows(ax, view[away], m[away], figures.RED, length=0.2, width=0.006)
    ax.text(
        0.03,
        0.03,
        f"{turned[name]:.0%} point away",
        transform=ax.transAxes,
        fontsize=9,
        backgroundcolor="white",
    )
figures.show(
    fig,
    alt="Directions of the mean shift of two small networks at λ = 0.1 on a lattice "
    "over [−2.4, 2.4]². With the negative gain nearly all point to the fractal, in "
    "blue. With the positive gain those far from it, drawn thick and red, point away "
    "from it, to infinity.",
)

# %% tags=["break-it"]
unlucky = list(pair.values())[1]
for name in (
    "mean shift",
    "SDS annealed",
    "MSD exact",
    "MSD sum, full",
    "MSD sum, chosen",
):
    x = optimise(tables.METHODS[name](1), unlucky, lattice)
    nll, lost = -p.log_prob(x), (x.abs() > 2).any(-1).double().mean()
    print(
        f"{name:16} mean −log p {nll.mean():9.2f}, median {nll.median():6.2f}, "
        f"{lost:4.0%} outside [−2, 2]²"
    )

# %% tags=["check"]
angle = torch.arange(64, dtype=torch.float64) * math.pi / 32
far = 1e4 * torch.stack([angle.cos(), angle.sin()], -1)
for name, net in pair.items():
    c = []
    for s in (0.03, 0.3, 3.0):
        slope = net.log_density(far, s) / far.square().sum(-1) * (s**2 + 0.25)
        c.append((slope + 0.5) * s / net.gain)
    c = torch.stack(c)
    spread = ((c - c[0]).abs().max() / c.max()).item()
    print(
        f"{name}: c = {c[0].min():.2f} to {c[0].max():.2f}, the same at three levels "
        f"up to {spread:.1e}"
    )
    with torch.no_grad():
        outward = ((net(far, 0.1) - far) * far).sum(-1) > 0
    wrong = (outward != (net.gain * c[0] > 0.05)).sum()
    print(
        f"  outward at σ = 0.1 in {outward.double().mean():.0%} of directions, "
        f"foretold for all but {wrong}"
    )
    assert spread < 0.01
    assert wrong <= 3

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

All but one, and sampling does not help: where every sample comes from the same wrong question, the kernel keeps the network's inputs near $x$ from the first level on. Mean shift loses some; annealed SDS, the sum over the full interval and the exact sampler lose more.

</details>

Each point that leaves costs hundreds of thousands of nats. The means show nothing else; the medians hardly notice.

The row that loses nothing is one of the paper's. With the kernel *limited to an interval* the sampler starts as plain sampling of $p$, from pure noise, where the network is at home. When the kernel comes in, $z$ is on the tree, and is drawn towards $x$ from there. Chapter 05 judged this sampler by the moments of $q$, and it failed; as a way of never asking a network what it does not know it is excellent. "Does sampling pay?" has a second answer: as insurance, if the sampler starts where the training was.

## Table 2, the right halves

The full protocol (25 × 25 starts, three seeds, two where N = 10, each with a network of its own) takes hours and is stored; chapter 06 explains its rows. Errors are standard errors over the seeds; the check recomputes three rows.
"""

# %% tags=["hide-input"] jupyter={"source_hidden": true}
stored, printed = records.read("table2")["rows"], records.read("paper")["table2"]
SCALE = {"nll": 1, "precision": 1, "recall": 1, "mmd": 1e4}
WIDTH = {"nll": 7, "precision": 5, "recall": 5, "mmd": 5}  # of the standard errors


def line(name, density, denoiser, method, samples):
    rows = records.select(
        stored, density=density, denoiser=denoiser, method=method, samples=samples
    )
    if not rows:
        return f"  {name:17} not stored"
    cells = []
    for figure, scale in SCALE.items():
        mean, error = records.summary(rows, figure)
        cells.append(f"{scale * mean:8.2f} ± {scale * error:{WIDTH[figure]}.2f}")
    return f"  {name:17}" + "".join(cells) + f" ({len(rows)} seeds)"


OURS = [
    ("DDIM", 1),
    ("SDS, t uniform", 1),
    ("SDS annealed", 1),
    ("SDI", 1),
    ("mean shift", 1),
    ("MSD sum, full", 1),
]
OURS += [("MSD sum, chosen", 1), ("MSD exact", 1), ("MSD exact", 10)]
print(f"{'learned':19}{'NLL':>8}{'precision':>18}{'recall':>16}{'MMD² × 10⁴':>16}")
for density in tables.DENSITIES:
    print(density)
    for row in records.select(printed, density=density, denoiser="learned"):
        cells = [
            f"{SCALE[figure] * row[figure]:8.2f}" + " " * (WIDTH[figure] + 3)
            for figure in SCALE
        ]
        print(f"  {'paper: ' + row['method']:17}" + "".join(cells))
    for method, samples in OURS:
        print(
            line(
                f"{method}, N = {samples}" if samples > 1 else method,
                density,
                "learned",
                method,
                samples,
            )
        )

# %% tags=["check"]
sizes = tables.SMOKE if NAME == "smoke" else tables.PROTOCOL
live = {}
for method in ("DDIM", "mean shift", "SDS, t uniform"):
    row = tables.Row("fractal", "learned", method, 1, 0)
    live[method] = tables.table2(row, sizes)
    same = records.select(stored, **row._asdict()) if NAME != "smoke" else []
    reference = f"{same[0]['nll']:.2f} stored" if same else "no stored row of this size"
    print(
        f"fractal, learned, {method}: −log p {live[method]['nll']:.2f} now, {reference}"
    )
    if same:
        assert abs(live[method]["nll"] - same[0]["nll"]) < 0.3 + 0.1 * abs(
            same[0]["nll"]
        )
assert live["mean shift"]["nll"] < live["SDS, t uniform"]["nll"]
assert live["mean shift"]["recall"] <= live["DDIM"]["recall"]

# %% [markdown]
r"""
One seed of three makes the fractal's thousands. The networks have the gains −0.30, 0.28 and −0.26, and the second loses some of the 625 starts to infinity: under mean shift four, at half a million nats each, while the mean of the other 621 is −2.81. NLL judges a set of points by its worst one; give it with the median, or with the share of strays.

Where nobody is lost, the methods that seek modes end where they end with $D^*$, to a tenth of a nat (annealed SDS on the spiral: three tenths). The paper finds MSD *better* with the learned denoiser (−2.02 against −1.32 on the fractal); we find no such gain. Its orders of precision (MSD above SDS) and recall (MSD below DDIM) hold in every row.
"""

# %% [markdown]
r"""
## Autoguidance: the good, the bad and their difference

Some samples of $D_\theta$ itself lie beside the tree, and they cost most of its likelihood. [Karras et al. (2024)](https://arxiv.org/abs/2406.02507) remove them with an idea that sounds wrong: they train a *worse* network and guide away from it,

$$
D_s = D_\text{weak} + s\,(D_\text{strong} - D_\text{weak}), \qquad s > 1. \tag{M7.10}
$$

If the weak one makes the mistakes of the strong one, only larger, their difference points away from the mistakes.

**Predict.** What do the strays do as $s$ grows from 1 to 2? To 4? And what would it do for a strong network without errors?
"""

# %% tags=["break-it"]
noise = 5 * torch.randn(
    pick(smoke=200, laptop=1500), 2, dtype=torch.float64, generator=generator
)
ladder = karras_sigmas(32, 0.002, 5.0)
contenders = {"true D": p.denoise, "weak": weak, "strong": strong}
contenders |= {f"s = {s}": guided(strong, weak, s) for s in (1.5, 2, 4)}
drawn = {}
for name, denoise in contenders.items():
    *_, drawn[name] = sample(denoise, noise, ladder)
    nll = -p.log_prob(drawn[name])
    print(
        f"{name:8} mean −log p {nll.mean():6.2f}, median {nll.median():5.2f}, above "
        f"5: {(nll > 5).double().mean():5.1%}"
    )

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(list(drawn), rows=2, width=7.4)
for ax, x, color in zip(
    axes,
    drawn.values(),
    (figures.BLACK, figures.ORANGE, *[figures.BLUE] * 4),
    strict=True,
):
    ax.set(xlim=(-0.7, 1.5), ylim=(-0.65, 1.55))
    figures.density(ax, p, pixels=150)
    stray = p.log_prob(x) < -5
    figures.points(ax, x[~stray], color, size=4, alpha=0.5)
    figures.points(ax, x[stray], figures.RED, "X", size=14, alpha=0.9)
    ax.text(
        0.04,
        0.04,
        f"{stray.double().mean():.0%} astray",
        transform=ax.transAxes,
        fontsize=9,
    )
figures.show(
    fig,
    alt="Samples of the fractal by the true denoiser, a weak and a strong network, "
    "and the strong one guided by the weak one with s = 1.5, 2 and 4; strays as red "
    "crosses. The weak network scatters most; guidance clears them up to about 2; at "
    "4 the tips overshoot and branches are lost.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

At $s = 1.5$ more than a third of the strays are gone, at 2 a few more. At $s = 4$ nearly 9 per cent are astray, more than the 6 without guidance, and twigs are missing. For a strong network without errors the difference consists of the weak one's errors alone, and guiding can only distort.

</details>

The two networks were trained alike, and where the strong one is a little unsure which twig to choose the weak one smears over all of them: the difference points to the twig. Autoguidance lives on both being wrong.

### Exercise 7.3 · Guidance where it helps (★★, 15 min)

Guidance by a class helps images at middle noise levels and harms at the others ([Kynkäänniemi et al., 2024](https://arxiv.org/abs/2404.07724)). Does autoguidance on the fractal, too? Write `autoguided(strong, weak, scale, low, high)`: a denoiser that guides with `scale` where $\texttt{low} \le \sigma \le \texttt{high}$ and is the strong network elsewhere. `sigma` may be a number or a tensor with one level per item.
"""


# %% tags=["exercise"]
def autoguided(strong, weak, scale, low, high):
    raise NotImplementedError  # your code


checks.autoguided(autoguided)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def autoguided(strong, weak, scale, low, high):
    def strength(sigma):
        sigma = torch.as_tensor(sigma)
        return torch.where((sigma >= low) & (sigma <= high), scale, 1.0)

    return guided(strong, weak, strength)


checks.autoguided(autoguided)
for low, high in ((0.0, 5.0), (0.0, 0.3), (0.01, 0.3), (0.1, 5.0)):
    *_, x = sample(autoguided(strong, weak, 2.0, low, high), noise, ladder)
    nll = -p.log_prob(x)
    print(
        f"s = 2 for σ in ({low}, {high}): mean −log p {nll.mean():6.2f}, above 5: "
        f"{(nll > 5).double().mean():5.1%}"
    )

# %% [markdown]
r"""
Not here. Every interval removes fewer strays than guiding all the way. What a class guides away from at high noise is a region, and with it whole branches; what a weak network guides away from is the same error at every level.

### Open task 7 · Train where you will ask

The exact score may be had at any point, so nothing forces the network to learn on $y + \sigma n$ alone. Train it on what the sampler and mean shift will ask: shares $\rho$ from 0 to 1 in 32 dimensions, a lattice around the fractal in the plane. What becomes of the map, of the dip, of $N^*$, and what does it cost on the typical set?
"""

# %% [markdown]
r"""
## Take-aways

- The loss is the squared error of $D_\theta$ in units of $\sigma$. The denoising loss used for images adds the posterior variance to it, 99.7 per cent of the total at $\sigma = 0.1$.
- Ideal denoisers memorise at small $\sigma$, networks blur. On the fractal the errors of ours cross at $\sigma \approx 0.008$ for $10^4$ data.
- In the plane a clean point is the *best* input a network can get, and out of distribution means off the density. In 32 dimensions noise lives on a shell, and inputs with too little of it are out of distribution as well.
- Off the density $D_\theta(x; \lambda) - x$ has a wrong length, which Adam and annealing hide, and a right direction only by the sign of one weight.
- As an estimate of the mean shift, sampling takes hundreds of draws to match one call where the network is right, if it ever does, and one to four where it is badly wrong. In the plane it paid in the optimisation as insurance only.
- A worse copy of a network knows where the network errs.

## What's next

Chapter 08 leaves the place where the truth can be computed: a latent diffusion model for images takes the role of $D_\theta$, with none of the referees of this chapter. What we keep is the interface, `denoise(z, sigma)`, and a list of things to distrust.
"""
