# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""
# Sample the product of a density and a kernel

You will build a sampler that draws from a diffusion model *near a point of your choice*, hold the paper's sampler and an exact one against a closed form, and find out when it is worth drawing samples at all.

*Reading and exercises: 125 minutes, 70 of them for the exercises. Computing: about a minute on two CPU cores, seconds at `smoke`. Before this: chapters 01 and 02; chapter 03 helps, but is not needed.*

## What you'll learn

- write down the product density of Eq. 8 for any Gaussian mixture, with its mean and covariance;
- price the estimate of Eq. 7 in closed form, and say why nobody pays it when the bandwidth is small;
- prove that the sum of a noisy score and a clean kernel score does not sample it, and predict to three digits where it ends instead;
- derive, in five lines, a denoiser that does;
- decide between one denoiser call, one sample and many, with and without guidance.
"""

# %%
import itertools
import math

import matplotlib.pyplot as plt
import torch
from tqdm.auto import tqdm

from msd_teach import (
    GaussianMixture,
    counted,
    fractal,
    guided,
    karras_sigmas,
    product_denoiser,
    sample,
    sample_product,
)
from msd_teach.lesson import checks, figures
from msd_teach.lesson.budget import pick

figures.use_style()
generator = torch.Generator().manual_seed(0)
p = fractal("A")
looks = {"truth": (figures.BLACK, "o"), "exact": (figures.GREEN, "^")}
looks |= {"exponential": (figures.RED, "s"), "explicit": (figures.ORANGE, "v")}

# %% [markdown]
r"""
## The product density

The mean-shift step of chapter 01 moves $x$ to the average $x'$ of everything near it. Notice what this is an average *of*. Weight every $y$ by the kernel, normalise, and you have a density of its own, the **product density**

$$
q_\lambda(y \mid x) = \frac{p(y)\,\mathcal N(y;\, x, \lambda^2 I)}{p_\lambda(x)}, \qquad x' = \mathbb E_{q_\lambda}[y]. \tag{8}
$$

The paper draws from it: one draw $y$ gives the estimate $m(x) \approx y - x$ (Eq. 11).

For a Gaussian mixture the product is another mixture. One component times the kernel is one Gaussian, by completing the square, and what is left over is a number:

$$
\begin{aligned}
\mathcal N(y; \mu_k, \Sigma_k)\,\mathcal N(y; x, \lambda^2 I) &= \underbrace{\mathcal N(x; \mu_k, \Sigma_k + \lambda^2 I)}_{\text{into the weight}}\; \mathcal N\bigl(y;\, \mu_k', \Sigma_k'\bigr), \cr
\Sigma_k'^{-1} = \Sigma_k^{-1} + \lambda^{-2}I, \quad \mu_k' &= \Sigma_k'\bigl(\Sigma_k^{-1}\mu_k + \lambda^{-2}x\bigr).
\end{aligned} \tag{M4.4}
$$

That is `p.product(x, λ)`, and it will referee every sampler of this chapter. Two facts hold for *any* density, since $q_\lambda$ is the posterior of $y$ given a noisy look $x = y + \lambda n$ (M1.4):

$$
\mathbb E_q[y] = D(x; \lambda), \qquad \operatorname{Cov}_q[y] = \lambda^2\, \frac{\partial D}{\partial x}(x; \lambda). \tag{M4.5}
$$

Our density is the fractal. We ask at three points: on its trunk, on a twig, in a gap.

**Predict.** Sketch $q_\lambda$ for the point in the gap at λ = 0.3, 0.1 and 0.03. It has mass where both factors have it. Where is that when the kernel is narrower than the gap?
"""

# %%
queries = {"trunk": (0.25, 0.33), "twig": (-0.28, 0.9), "gap": (0.62, 0.55)}
queries = {
    name: torch.tensor(point, dtype=torch.float64) for name, point in queries.items()
}
drawn = p.sample(pick(smoke=20_000, laptop=200_000), generator=generator)
asked = {"trunk": (figures.SKY, "P"), "twig": (figures.PINK, "X"), "gap": ("0.35", "D")}
shown = (0.3, 0.1, 0.03)


def draw(denoise, x, bandwidth, levels, kernel):
    """The end of `sample_product`, from a random start for every row of x."""
    *_, y = sample_product(denoise, x, bandwidth, levels, kernel, generator=generator)
    return y


def moments(mixture):
    """Mean (d,) and total variance of a mixture."""
    mean = mixture.weights @ mixture.means
    within = mixture.covariances.diagonal(dim1=1, dim2=2).sum(-1)
    return mean, mixture.weights @ (within + (mixture.means - mean).square().sum(-1))


# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes([f"λ = {λ}" for λ in shown], width=8.4)
circle = torch.linspace(0, 2 * math.pi, 100)
circle = torch.stack([circle.cos(), circle.sin()])
for ax, λ in zip(axes, shown, strict=True):
    ax.set(xlim=(0.1, 1.1), ylim=(0.05, 1.05))
    q, x = p.product(queries["gap"], λ), queries["gap"]
    figures.density(ax, q, pixels=160)
    figures.points(ax, drawn[:8000], figures.SKY, size=1.2, alpha=0.35, zorder=1)
    ax.plot(
        *(x[:, None] + λ * circle), color=figures.PINK, linewidth=1.3, linestyle="--"
    )
    ax.plot(*x, "*", color=figures.PINK, markersize=11, markeredgecolor="white")
    ax.plot(*p.denoise(x, λ), "D", color=figures.BLUE, markersize=6)
figures.show(
    fig,
    alt="The product of the fractal with a kernel at a point in a gap, for three "
    "bandwidths. At 0.3 it holds all branches around; at 0.1 the nearest branches; at "
    "0.03 one spot of the nearest branch, outside the dashed circle of radius λ.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

At 0.03 the kernel's own disc (dashed) holds no data, and the product sits where its tail first meets a branch. At 0.3 it holds all branches around.

</details>

The blue diamond is the mean $D(x;\lambda)$, where mean shift would go next. At λ = 0.3 it lies in the gap itself: an average of branches on both sides. We check (M4.5), with automatic differentiation for the Jacobian.
"""

# %% tags=["check"]
worst = 0.0
for x in (*queries.values(), *p.sample(5, sigma=0.3, generator=generator)):
    for λ in shown:
        q = p.product(x, λ)
        mean = q.weights @ q.means
        scatter = torch.einsum("k,ki,kj->ij", q.weights, q.means - mean, q.means - mean)
        covariance = scatter + torch.einsum("k,kij->ij", q.weights, q.covariances)
        J = torch.autograd.functional.jacobian(lambda x, λ=λ: p.denoise(x, λ), x)
        mean_error = (mean - p.denoise(x, λ)).norm() / mean.norm()
        covariance_error = (covariance - λ**2 * J).norm() / covariance.norm()
        worst = max(worst, mean_error.item(), covariance_error.item())
print(
    "mean of q against D(x; λ), covariance against λ² ∂D/∂x: largest relative error "
    f"{worst:.1e}"
)
assert worst < 1e-9

# %% [markdown]
r"""
## What an average over samples costs

If all you have is a machine that draws from $p$, the plain way to $x'$ is to draw $y_1, \dots, y_N$ once and weigh them:

$$
x' \approx \frac{\sum_i k_i\, y_i}{\sum_i k_i}, \qquad k_i = \mathcal N(x - y_i;\, \lambda^2 I). \tag{7}
$$

The paper dismisses this in a sentence, as needing "a very large number of samples for practical (i.e. small) kernel bandwidths". How large? Most weights are nearly zero, and the count that matters is the **effective sample size** $N_\text{eff} = (\sum k_i)^2 / \sum k_i^2$: as many equal weights would average as well. Its limit is a closed form, because the square of a Gaussian is a Gaussian: $\mathcal N(u; \lambda^2 I)^2 = (4\pi\lambda^2)^{-d/2}\, \mathcal N(u; \tfrac{\lambda^2}2 I)$. Hence

$$
\frac{N_\text{eff}}{N} \to \frac{(\mathbb E\,k)^2}{\mathbb E\,k^2} = (4\pi\lambda^2)^{d/2}\; \frac{p_\lambda(x)^2}{p_{\lambda/\sqrt2}(x)}
\;\xrightarrow{\ \lambda \to 0\ }\; (4\pi\lambda^2)^{d/2}\, p(x). \tag{M4.1}
$$

The mean square error is the scatter of the narrower product over $N_\text{eff}$ (the delta method, for a quotient):

$$
\mathbb E\,|\hat x' - x'|^2 \approx \frac1{N_\text{eff}} \Bigl[\operatorname{tr}\operatorname{Cov}_{q_{\lambda/\sqrt2}} + \bigl|D(x; \tfrac{\lambda}{\sqrt2}) - D(x;\lambda)\bigr|^2\Bigr]. \tag{M4.2}
$$

**Predict.** Halve λ. Does the number of samples for 10 % accuracy double, or grow fourfold? Does it matter where on the fractal you are?
"""


# %%
def share(mixture, x, bandwidth):
    """N_eff/N, (M4.1)."""
    d, narrow = len(x), bandwidth / math.sqrt(2)
    logs = (
        2 * mixture.log_prob(x, bandwidth)
        - mixture.log_prob(x, narrow)
        + d / 2 * math.log(4 * math.pi * bandwidth**2)
    )
    return logs.exp().item()


def samples_needed(mixture, x, bandwidth, accuracy=0.1):
    """N for which the root mean square error of m(x) is `accuracy`·|m|, (M4.2)."""
    there = mixture.denoise(x, bandwidth)
    mean, variance = moments(mixture.product(x, bandwidth / math.sqrt(2)))
    spread = variance + (mean - there).square().sum()
    return (
        spread / (accuracy * (there - x).norm()) ** 2 / share(mixture, x, bandwidth)
    ).item()


levels = torch.logspace(-3, 0, pick(smoke=13, laptop=31), dtype=torch.float64).tolist()

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (view, left, right) = plt.subplots(
    1, 3, figsize=(9.4, 3.3), width_ratios=(1, 1.1, 1.1)
)
view.set(
    title="three query points",
    xlim=(-0.6, 1.5),
    ylim=(-0.5, 1.6),
    aspect="equal",
    xticks=[],
    yticks=[],
)
view.spines[:].set_visible(False)
figures.density(view, p, pixels=160)
for name, x in queries.items():
    color, marker = asked[name]
    view.plot(*x, marker, color=color, markersize=8, markeredgecolor="white")
    left.loglog(levels, [share(p, x, λ) for λ in levels], color=color, linestyle="-")
    for λ in levels[::3]:
        k = (-(drawn - x).square().sum(-1) / (2 * λ**2)).softmax(0)
        left.plot(λ, 1 / k.square().sum() / len(k), marker, color=color, markersize=4.5)
    needed = [samples_needed(p, x, λ) for λ in levels]
    right.loglog(
        levels,
        needed,
        marker=marker,
        markevery=3,
        color=color,
        linestyle="-",
        label=name,
    )
left.axhline(1 / len(drawn), color="0.5", linestyle=":", linewidth=1)
left.text(0.06, 1.4 / len(drawn), "one sample", color="0.4", fontsize=8)
left.set(
    title="share of samples that count",
    xlabel="bandwidth λ",
    ylabel="$N_\\mathrm{eff}/N$",
    ylim=(1e-7, 2),
)
right.set(
    title="samples for 10 % error of m(x)",
    xlabel="bandwidth λ",
    ylabel="N",
    ylim=(10, 1e12),
)
right.legend(fontsize=8, loc="upper right")
figures.show(
    fig,
    alt="Left, three query points on a fractal: on the trunk, on a twig, in a gap. "
    "Middle, the effective share of samples falls with the bandwidth, closed form as "
    "lines and draws as markers. Right, the samples needed for ten per cent error "
    "rise.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Neither: on the branches, once λ is smaller than they are thick, it grows *sixteenfold* (right), although the share of useful samples falls only fourfold (middle). In the gap there is no power law but a wall: $p(x)$ itself is in the denominator, and it is nearly zero.

</details>

The error is measured against $m$, and $m$ shrinks like $\lambda^2$ while the scatter of the average shrinks like λ. For a smooth density and a relative error δ,

$$
N \;\sim\; \frac{d}{2\,\delta^2\,|\nabla\log p|^2\,p(x)}\; \lambda^{-2}\,(4\pi\lambda^2)^{-d/2} \;\propto\; \lambda^{-(d+2)}. \tag{M4.3}
$$

Look at the markers in the middle panel that leave their curve and stay near "one sample": the *estimated* effective size cannot fall below one, and so looks best where the estimate is worst. It has found the nearest sample and sees nothing else.
"""

# %% tags=["check"]
small = torch.tensor([2e-4, 1e-4], dtype=torch.float64)
for name in ("trunk", "twig"):
    useful, needed = (
        [f(p, queries[name], λ) for λ in small.tolist()]
        for f in (share, samples_needed)
    )
    slopes = [math.log2(v[0] / v[1]) for v in (useful, needed)]
    print(
        f"{name:5}: share ~ λ^{slopes[0]:.2f} (predicted 2), N for 10 % error ~ "
        f"λ^{slopes[1]:.2f} (predicted −4)"
    )
    assert abs(slopes[0] - 2) < 0.1
    assert abs(slopes[1] + 4) < 0.1

# %% tags=["check"]
N, repeats = 4000, pick(smoke=50, laptop=400)
for λ in (0.3, 0.1):
    x = queries["trunk"]
    y = p.sample(N * repeats, generator=generator).reshape(repeats, N, 2)
    k = (-(y - x).square().sum(-1) / (2 * λ**2)).softmax(-1)
    miss = ((k[..., None] * y).sum(1) - p.denoise(x, λ)).square().sum(-1)
    error = miss.mean().sqrt() / (p.denoise(x, λ) - x).norm()
    predicted = 0.1 * math.sqrt(samples_needed(p, x, λ) / N)
    print(
        f"λ = {λ}: relative error of Eq. 7 with {N} samples {error:.4f}, by (M4.2) "
        f"{predicted:.4f}"
    )
    assert abs(error / predicted - 1) < pick(smoke=0.4, laptop=0.15)

# %% [markdown]
r"""
The dimension sits in the exponent. For the 16 384 numbers of a Stable Diffusion latent the share has more than a thousand zeros behind the point, even at λ = 1 and even at the centre of $p = \mathcal N(0, I)$. The paper is right to look elsewhere.

### Exercise 4.1 · The price of dimension (★★, 15 min)

Write `sample_share(d, bandwidth)`, numbers to a number: the limit of $N_\text{eff}/N$ at $x = 0$ for $p = \mathcal N(0, I)$ in $d$ dimensions, from (M4.1).
"""


# %% tags=["exercise"]
def sample_share(d, bandwidth):
    raise NotImplementedError  # your formula


checks.sample_share(sample_share)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def sample_share(d, bandwidth):
    # p_σ(0) = (2π(1 + σ²))^(−d/2), once with σ = λ squared, once with σ = λ/√2;
    # the powers of π cancel.
    return (bandwidth * math.sqrt(2 + bandwidth**2) / (1 + bandwidth**2)) ** d


checks.sample_share(sample_share)
print(
    f"λ = 1: share in the plane {sample_share(2, 1):.2f}; in 16 384 dimensions "
    f"10^{16384 * math.log10(sample_share(1, 1)):.0f}"
)

# %% [markdown]
r"""
## The obvious sampler, and what it samples

Drawing from $q_\lambda$ directly would waste no sample. A diffusion sampler needs a score. The logarithm of a product is a sum, so the paper adds the score of the kernel to that of the model:

$$
\nabla_z \log p_\sigma(z) + \nabla_z \log \mathcal N(z; x, \lambda^2 I) = \nabla_z\log p_\sigma(z) + \frac{x - z}{\lambda^2}. \tag{9}
$$

<details>
<summary>Erratum: Eq. 9, the second equality</summary>

The paper prints the kernel's score as $-(x - z)/\lambda^2$, which points *away* from $x$. With $G(u) = c\,e^{-|u|^2/\lambda_\text{paper}^2}$ and $u = x - z$, the chain rule gives $\nabla_z\log G(x - z) = -\tfrac{1}{\lambda_\text{paper}^2}\cdot 2(x - z)\cdot(-1) = +\tfrac{2}{\lambda_\text{paper}^2}(x - z)$, and $2/\lambda_\text{paper}^2 = 1/\lambda^2$.

</details>

<details>
<summary>Erratum: Eq. 12</summary>

The paper prints $\hat\epsilon_t = \epsilon_\theta - (x - z_t)/\lambda^2$. But $\epsilon_\theta = -\sigma\,\nabla\log p_\sigma$ is a score times $-\sigma$, so the kernel's score needs the same factor before it may be added: $\hat\epsilon = \epsilon_\theta - \sigma\,(x - z)/\lambda^2$. The printed sign is the right one, and contradicts Eq. 9.

</details>

We call this the **sum of scores**. Put it into the probability-flow ODE of chapter 02, $\mathrm dz/\mathrm d\sigma = -\sigma \cdot \text{score}$:

$$
\frac{\mathrm dz}{\mathrm d\sigma} = \frac{z - D(z;\sigma)}{\sigma} + \frac{\sigma\,(z - x)}{\lambda^2}. \tag{M4.6}
$$

The second term is stiff. `kernel="explicit"` hands the whole right-hand side to the solver, and an Euler step multiplies $z - x$ by $1 - \sigma|\Delta\sigma|/\lambda^2$, which explodes when it falls below −1. `kernel="exponential"` is the paper's cure, Eq. 15: an ordinary step for the model, then the kernel's own flow, exactly. Chapter 05 is about the difference. The "patient" explicit run gets 200 more levels, evenly spaced in $\sigma^2$, so that $\sigma|\Delta\sigma|/\lambda^2$ stays below one.

**Predict.** The two stable samplers solve the same equation (M4.6). Will their clouds look like the truth, be too wide, or too narrow?
"""

# %%
x, λ = queries["gap"], 0.3
n = pick(smoke=150, laptop=600)
karras = karras_sigmas(32, 0.002, 5.0)
patient = torch.linspace(25, 0, 201, dtype=torch.float64).sqrt()
patient = torch.cat([patient, karras]).unique().flip(0)  # fine at both ends
start = x.expand(n, 2)
truth = p.product(x, λ)
clouds = {"truth, in closed form": truth.sample(n, generator=generator)}
clouds["explicit, 32 Heun steps"] = draw(p.denoise, start, λ, karras, "explicit")
*_, clouds["explicit, patient Euler"] = sample_product(
    p.denoise, start, λ, patient, "explicit", solver="euler", generator=generator
)
clouds["exponential, 32 Heun steps"] = draw(p.denoise, start, λ, karras, "exponential")

# %%
mean, variance = moments(truth)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(list(clouds), width=10)
for ax, (name, cloud) in zip(axes, clouds.items(), strict=True):
    color, marker = looks[name.split(",")[0]]
    ax.set(xlim=(-0.15, 1.35), ylim=(-0.2, 1.3))
    figures.density(ax, truth, pixels=160)
    figures.points(
        ax, cloud, color, marker, size=6 if cloud.var(0).sum() > 1e-6 else 60, alpha=0.8
    )
    ax.plot(
        *mean, "+", color=figures.BLACK, markersize=11, markeredgewidth=1.5, zorder=5
    )
    inside = ((cloud - x).abs() < 1).all(-1).double().mean()
    spread = (cloud.var(0).sum() / variance).sqrt()
    ax.set_xlabel(f"spread / true spread = {spread:.2g}", fontsize=9)
    if inside == 0:
        ax.text(0.5, 0.5, "all outside", transform=ax.transAxes, ha="center")
    print(
        f"{name:28}: spread {spread:8.2g} of the true one, {inside:4.0%} within the "
        "view"
    )
figures.show(
    fig,
    alt="Four clouds over the product density at a point in a gap. The truth fills "
    "the surrounding branches. The explicit sampler with 32 steps has left the view. "
    "Patient explicit and exponential samplers put all their samples on one single "
    "spot.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

*One point* each. Every draw of noise ends in the same place, to all digits, and it is not the mean (the cross).

</details>

The patient run and the exponential one agree on something that is no sample at all. So the solver is not at fault, the equation is. (That their spots differ a little is the error of their steps.)

### Why it must collapse

Follow two solutions of (M4.6), and let δ be their difference. With $A = \partial D/\partial z = \operatorname{Cov}[y\mid z]/\sigma^2$, averaged along the segment between them,

$$
\frac{\mathrm d\delta}{\mathrm d\sigma} = \Bigl[\underbrace{\frac{I - A}{\sigma}}_{\text{the model}} + \underbrace{\frac{\sigma}{\lambda^2}}_{\text{the kernel}}\Bigr]\delta .
$$

The kernel's bracket is a number and does not depend on where we are, so it integrates by itself: going from $\sigma_{\max}$ down to 0 it multiplies δ by

$$
\exp\Bigl(-\int_0^{\sigma_{\max}} \frac{\sigma\,\mathrm d\sigma}{\lambda^2}\Bigr) = e^{-\sigma_{\max}^2/2\lambda^2}. \tag{M4.7}
$$

With $\sigma_{\max} = 5$ and λ = 0.3 this is about $10^{-60}$, and most of it is spent at large σ, before the model has seen any structure. The randomness of a diffusion sampler is all in its start; this start is forgotten. What the model does in its bracket, it does to what is left.

<details>
<summary>Erratum: Eq. 9, the first equality</summary>

This one is not a misprint, and no other in the paper changes as much. Eq. 9 calls the sum "the score of our product density". At noise level σ a sampler needs the score of the *noised* product, $q_\lambda * \mathcal N(0,\sigma^2 I)$; the sum is the score of the noised $p$ times the *clean* kernel, and blurring a product is not blurring one factor. In one dimension, for $p = \mathcal N(0, s^2)$: the noised product's score falls off as $1/\sigma^2$, the sum tends to $(x - z)/\lambda^2$. They agree at σ = 0 and nowhere else.

</details>

That a sum of noised scores is not the noised score of the product is known from composing diffusion models ([Du et al., 2023](https://arxiv.org/abs/2302.11552)); there the remedy is Markov chain Monte Carlo at every level. For a Gaussian kernel we shall do better.

### Where it ends instead: a referee

For one Gaussian, $p = \mathcal N(0, s^2)$, (M4.6) is linear and can be solved. From $\sigma_{\max}=\infty$, where the start is forgotten entirely, it ends at

$$
z(0) = x\,\sqrt{\tfrac{\pi}{2}}\;r\,e^{r^2/2}\operatorname{erfc}\!\bigl(r/\sqrt2\bigr), \qquad r = \frac s\lambda, \tag{M4.8}
$$

while the mean of the product is $x\,s^2/(s^2+\lambda^2) = x\, r^2/(1+r^2)$.

<details>
<summary>Aside: the integral</summary>

With $D(z;\sigma) = s^2z/(s^2+\sigma^2)$ the function $h(\sigma) = \sqrt{s^2+\sigma^2}\;e^{\sigma^2/2\lambda^2}$ solves the homogeneous part, so $z(0) = s\int_0^\infty x\,(\sigma/\lambda^2)\,(s^2+\sigma^2)^{-1/2}\,e^{-\sigma^2/2\lambda^2}\,\mathrm d\sigma$. Substitute $u^2 = s^2 + \sigma^2$.

</details>

**Predict.** At $r = 1$ the truth is one half. Does the sum of scores end nearer to $x$ or nearer to the data?
"""

# %%
ratio = torch.logspace(-1.5, 1.5, 61, dtype=torch.float64)
collapsed = (
    math.sqrt(math.pi / 2) * ratio * torch.special.erfcx(ratio / math.sqrt(2))
)  # erfcx(a) = exp(a²) erfc(a)
exact = ratio**2 / (1 + ratio**2)
steps = karras_sigmas(pick(smoke=200, laptop=800), 1e-3, 10)
one, draws = torch.ones(20, 1, dtype=torch.float64), {"exponential": [], "exact": []}
for r in ratio[::6].tolist():
    gaussian = GaussianMixture(
        torch.ones(1), torch.zeros(1, 1), torch.tensor([[[(0.5 * r) ** 2]]])
    )
    for kernel, levels in (
        ("exponential", steps),
        ("exact", karras_sigmas(64, 1e-3, 10)),
    ):
        y = draw(gaussian.denoise, one, 0.5, levels, kernel)
        draws[kernel].append(y[:, 0])
draws = {kernel: torch.stack(columns) for kernel, columns in draws.items()}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.5), width_ratios=(1.2, 1))
left.semilogx(
    ratio, exact, color=figures.GREEN, linestyle="--", label="mean of the product"
)
left.semilogx(
    ratio, collapsed, color=figures.RED, linestyle="-", label="sum of scores, (M4.8)"
)
left.plot(ratio[::6], draws["exponential"], "s", color=figures.RED, markersize=5)
width = 0.5 * ratio / (1 + ratio**2).sqrt()
left.fill_between(
    ratio,
    exact - 2 * width,
    exact + 2 * width,
    color=figures.GREEN,
    alpha=0.1,
    linewidth=0,
)
left.plot(ratio[::6], draws["exact"], "^", color=figures.GREEN, markersize=3, alpha=0.5)
left.set(
    title="20 draws each: sum (squares), exact (triangles)",
    xlabel="s / λ",
    ylabel="sample, x = 1, λ = ½",
    ylim=(-0.6, 2.6),
)
right.semilogx(ratio, (1 - collapsed) / (1 - exact), color=figures.RED, linestyle="-")
right.axhline(1, color="0.6", linewidth=1, linestyle=":")
right.set(
    title="length of m(x): sum of scores / truth",
    xlabel="s / λ",
    ylabel="ratio",
    ylim=(0, 1.1),
)
left.legend(loc="upper left", fontsize=9)
figures.show(
    fig,
    alt="One Gaussian of width s. Left: draws by the sum of scores lie on one point "
    "on the erfc curve, above the true mean at every s/λ, while exact draws scatter "
    "around the mean. Right: the mean-shift vector of the sum is too short at every "
    "ratio, most near s/λ = 0.8.",
)

# %% tags=["check"]
at_one = math.sqrt(math.pi / 2) * torch.special.erfcx(
    torch.tensor(1 / math.sqrt(2), dtype=torch.float64)
)
error = (draws["exponential"] - collapsed[::6, None]).abs().max()
print(f"s = λ: the sum of scores ends at {at_one:.3f} x, the mean is 0.5 x")
print(
    f"draws of the sum against (M4.8): largest error {error:.1e}; their spread "
    f"{draws['exponential'].std(1).max():.1e}"
)
assert error < pick(smoke=1e-2, laptop=2e-3)

# %% tags=["check"]
s, λ, top = 0.5, 1.0, 2.0
gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.tensor([[[s**2]]]))
levels = torch.linspace(top**2, 0, 2001, dtype=torch.float64).sqrt()
y = draw(
    gaussian.denoise, torch.ones(4000, 1, dtype=torch.float64), λ, levels, "exponential"
)
predicted = top * s / math.hypot(s, top) * math.exp(-(top**2) / (2 * λ**2))
print(
    f"σ_max = {top}, λ = {λ}: spread {y.std():.4f}, by (M4.7) times the model's own "
    f"factor {predicted:.4f}, true {s * λ / math.hypot(s, λ):.4f}"
)
assert abs(y.std() / predicted - 1) < 0.05

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Nearer to $x$, at every $r$: the step $m$ comes out too short, by almost a third at worst.

</details>

## Two looks are one look

Ask the question again, from the side of the data. Seeing $z = y + \sigma n$ in the sampler, we want to know $y\sim q_\lambda$. But $q_\lambda$ is itself the posterior of someone who saw $x = y + \lambda n'$. So there are two noisy looks at one $y$:

$$
\begin{aligned}
q(y \mid z, x) &\propto p(y)\;\mathcal N(z; y, \sigma^2I)\;\mathcal N(x; y, \lambda^2 I) \cr
&\propto p(y)\,\exp\Bigl(-\tfrac12\bigl(\sigma^{-2}+\lambda^{-2}\bigr)|y|^2 + \bigl(\sigma^{-2}z+\lambda^{-2}x\bigr)\cdot y\Bigr) \cr
&\propto p(y)\;\mathcal N(\bar z; y, \bar\sigma^2 I), \cr
\bar\sigma^{-2} &= \sigma^{-2}+\lambda^{-2}, \qquad \bar z = \bar\sigma^2\bigl(\sigma^{-2}z+\lambda^{-2}x\bigr), \cr
D_q(z;\sigma\mid x) &= D(\bar z;\bar\sigma) = D\Bigl(\frac{\lambda^2z+\sigma^2x}{\lambda^2+\sigma^2};\ \frac{\lambda\sigma}{\sqrt{\lambda^2+\sigma^2}}\Bigr).
\end{aligned} \tag{M4.9}
$$

Line by line: two independent looks; what depends on $y$; the square completed; precisions add; one look, less noisy.

The denoiser of the product is the old denoiser, asked at another point and another noise level. No new term, no stiffness; one call costs one call. (The identity appears, for another purpose, in [Peng et al. (2025)](https://arxiv.org/abs/2506.09416).) An ordinary sampler does the rest. Two details:

- The noise level that the model sees never exceeds λ. With a bandwidth of 0.1, a model is never asked about σ above 0.1.
- As $\sigma\to\infty$, $D_q\to D(x;\lambda)$. So the sampler starts at $D(x;\lambda)+\sigma_{\max}n$, around the mean of $q$, not around the origin.

The library's `product_denoiser` is (M4.9) and nothing else; you will write it in exercise 4.2. The closed-form mixture (M4.4) shares no code with it.
"""

# %% tags=["check"]
z = torch.randn(50, 2, dtype=torch.float64, generator=generator)
worst, sum_error = 0.0, []
for x in queries.values():
    for λ in (1.0, 0.3, 0.1, 0.03):
        q, ours = p.product(x, λ), product_denoiser(p.denoise, x, λ)
        for σ in (3.0, 0.3, 0.03):
            point = q.weights @ q.means + σ * z
            want = q.denoise(point, σ)
            worst = max(worst, (ours(point, σ) - want).abs().max().item())
            summed = p.denoise(point, σ) + (σ / λ) ** 2 * (
                x - point
            )  # Eq. 9, written as a denoiser
            sum_error.append(
                (summed - want).norm(dim=-1).median().item() / math.sqrt(moments(q)[1])
            )
print(f"(M4.9) against the closed-form product: largest error {worst:.1e}")
print(
    f"the sum of scores as a denoiser: median error {min(sum_error):.1g} to "
    f"{max(sum_error):.1g} true spreads"
)
assert worst < 1e-10

# %% [markdown]
r"""
### Exercise 4.2 · Two looks (★★, 15 min)

Write the product denoiser: `look_twice(denoise, z, sigma, x, bandwidth)` for float64 points `z` (n, d) and `x` (d,), and numbers `sigma` and `bandwidth`. The checker compares with (M4.4) and, if you add variances where precisions add, says so.
"""


# %% tags=["exercise"]
def look_twice(denoise, z, sigma, x, bandwidth):
    raise NotImplementedError  # your code


checks.two_looks(look_twice)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def look_twice(denoise, z, sigma, x, bandwidth):
    variance = 1 / (1 / sigma**2 + 1 / bandwidth**2)
    return denoise(variance * (z / sigma**2 + x / bandwidth**2), math.sqrt(variance))


checks.two_looks(look_twice)

# %% [markdown]
r"""
## The samplers side by side

Now the exact sampler next to the paper's, on the branches and off them. The second row is a point outside the tree, where a distillation would spend its first steps.

**Predict.** Which column will you not be able to tell from the first?
"""

# %%
outside = torch.tensor([-0.6, 0.2], dtype=torch.float64)
titles = [
    f"{name}, {place}"
    for place in ("in the gap", "outside")
    for name in ("truth", "exact", "exponential")
]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(titles, rows=2, width=8.4)
for row, (x, λ) in enumerate(((queries["gap"], 0.2), (outside, 0.2))):
    q = p.product(x, λ)
    clouds = {"truth": q.sample(n, generator=generator)}
    for kernel in ("exact", "exponential"):
        clouds[kernel] = draw(p.denoise, x.expand(n, 2), λ, karras, kernel)
    centre = p.denoise(x, λ)
    for ax, (name, cloud) in zip(axes[3 * row :], clouds.items(), strict=False):
        ax.set(
            xlim=centre[0] + torch.tensor([-0.5, 0.5]),
            ylim=centre[1] + torch.tensor([-0.5, 0.5]),
        )
        figures.density(ax, q, pixels=160)
        figures.points(
            ax, cloud, *looks[name], size=8 if cloud.var(0).sum() > 1e-6 else 60
        )
        ax.plot(
            *x,
            "*",
            color=figures.PINK,
            markersize=11,
            markeredgecolor="white",
            zorder=5,
        )
        ax.plot(
            *centre,
            "+",
            color=figures.BLACK,
            markersize=11,
            markeredgewidth=1.5,
            zorder=5,
        )
figures.show(
    fig,
    alt="Samples near two points (stars), in a gap of the fractal and outside it, λ = "
    "0.2. Draws from the truth and by the exact sampler fill the same branches; the "
    "exponential sampler puts all draws on one spot away from the mean, which a cross "
    "marks.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The exact sampler's. (32 steps leave a little dust beside the branches.)

</details>

One look is no measurement. The table takes random query points *on* the fractal (draws from $p$) and *off* it (uniform in the square, as the paper starts). Its columns: the error of the sample mean as a share of $|m|$; the spread as a share of the true spread; the unbiased MMD² ([Gretton et al., 2012](https://jmlr.org/papers/v13/gretton12a.html)) between samples and fresh draws of the truth; and the root mean square error of a *single* draw as an estimate of $x + m$, over $|m|$, which is what Eq. 11 uses. The rows "truth" compare the closed form with itself: that is the noise floor.
"""


# %%
def mmd2(a, b):
    """Unbiased squared maximum mean discrepancy, as wide as b's median distance."""
    width = torch.pdist(b).median()
    within = [
        torch.exp(-torch.pdist(s).square() / (2 * width**2)).mean() for s in (a, b)
    ]
    return (
        sum(within) - 2 * torch.exp(-torch.cdist(a, b).square() / (2 * width**2)).mean()
    ).item()


# %%
def judge(x, bandwidth, kernel, n):
    """The table's four columns: medians over the points x (Q, 2), n draws each."""
    products = [p.product(point, bandwidth) for point in x]
    if kernel == "truth":
        y = torch.stack([q.sample(n, generator=generator) for q in products], 1)
    else:
        y = draw(p.denoise, x.expand(n, *x.shape), bandwidth, karras, kernel)
    rows = []
    for i, q in enumerate(products):
        mean, variance = moments(q)
        error = (y[:, i].mean(0) - mean).norm() / (mean - x[i]).norm()
        one = (y[:, i] - mean).square().sum(-1).mean().sqrt() / (mean - x[i]).norm()
        spread, fresh = (
            (y[:, i].var(0).sum() / variance).sqrt(),
            q.sample(n, generator=generator),
        )
        rows.append([error.item(), spread.item(), mmd2(y[:, i], fresh), one.item()])
    return torch.tensor(rows).median(0).values.tolist()


# %%
Q, draws_each = pick(smoke=4, laptop=12), pick(smoke=60, laptop=250)
places = {
    "on": p.sample(Q, generator=generator),
    "off": 3 * torch.rand(Q, 2, dtype=torch.float64, generator=generator) - 1.5,
}
table = {}
print(f"medians over {Q} points, {draws_each} draws each, 32 Heun steps")
print("place    λ    sampler      mean error   spread     MMD²    one draw")
for place, x in tqdm(places.items(), leave=False):
    for λ in (0.316, 0.1, 0.03):
        for kernel in ("truth", "exact", "exponential"):
            table[place, λ, kernel] = judge(x, λ, kernel, draws_each)
            error, spread, mmd, one = table[place, λ, kernel]
            print(
                f"{place:5} {λ:5}   {kernel:12} {error:9.3f} {spread:9.2f} {mmd:9.4f} "
                f"{one:9.2f}"
            )

# %% tags=["check"]
exact_spread = [row[1] for (_, _, kernel), row in table.items() if kernel == "exact"]
exact_mmd = [row[2] for (_, _, kernel), row in table.items() if kernel == "exact"]
sum_mmd = [row[2] for (_, _, kernel), row in table.items() if kernel == "exponential"]
low, high = min(exact_spread), max(exact_spread)
print(f"spread of the exact sampler: {low:.2f} to {high:.2f} of the true one")
print(
    f"MMD²: exact at most {max(exact_mmd):.4f}, sum of scores at least "
    f"{min(sum_mmd):.3f}"
)
x, λ = places["on"], 0.1
m = p.denoise(x, λ) - x
for steps in (32, 512):
    y = draw(p.denoise, x, λ, karras_sigmas(steps, 0.002, 5.0), "exponential")
    off = ((y - x - m).norm(dim=-1) / m.norm(dim=-1)).median()
    print(
        f"sum of scores on the fractal, λ = 0.1, {steps:3} steps: median error "
        f"{off:.2f} |m|"
    )
assert max(1 - low, high - 1) < pick(smoke=0.35, laptop=0.15)
assert max(exact_mmd) < min(sum_mmd) / 5

# %% [markdown]
r"""
The exact sampler cannot be told from the truth in any column. The sum of scores has no spread at all, and ends beside the mean by a good part of the step. Sixteen times as many steps change little: the bias is the equation's. As a sampler it fails.

The last column is kinder. On the fractal, an exact draw misses the mean by several times $|m|$: most of it is scatter. The sum of scores misses by less than half of $|m|$, because a bias without scatter is all it has. It is no sample, but it is a *deterministic approximation of mean shift*, and that is why it works as a gradient. Off the fractal the two come close, and for a small λ the order is reversed: there the scatter of a draw is small and the bias stays.

## Break it: forget where to start

`sample_product(kernel="exact")` starts at $D(x;\lambda) + \sigma_{\max}n$. Habit says $\sigma_{\max} n$: at a large noise level, who cares where the data are? In the worst case the start is off by $b = D(x;\lambda)$, and the flow maps deviations at $\sigma_{\max}$ to deviations at 0 by about the ratio of the spreads: in $d$ dimensions the error at the end is about $|b|/(\sigma_{\max}\sqrt d)$ spreads of $q$, whatever the solver does.

**Predict.** A narrow kernel needs no large $\sigma_{\max}$: ten times λ drowns everything. Take $\lambda = 0.03$ and $\sigma_{\max}=0.3$. How wrong is each start?
"""

# %% tags=["break-it"]
x, λ = queries["trunk"] + 0.02, 0.03
q = p.product(x, λ)
mean, variance = moments(q)
tops = torch.logspace(-1.5, 1, pick(smoke=6, laptop=11)).tolist()
offset = {r"from $D(x; λ) + σ_{max}\,n$": [], r"from $σ_{max}\,n$": []}
noise = torch.randn(
    pick(smoke=200, laptop=500), 2, dtype=torch.float64, generator=generator
)
for top in tqdm(tops, leave=False):
    for name, centre in zip(offset, (p.denoise(x, λ), torch.zeros(2)), strict=True):
        *_, y = sample(
            product_denoiser(p.denoise, x, λ),
            centre + top * noise,
            karras_sigmas(32, 1e-3, top),
        )
        offset[name].append(((y.mean(0) - mean).norm() / variance.sqrt()).item())

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6.4, 3.5))
for (name, values), color, marker in zip(
    offset.items(), (figures.GREEN, figures.RED), ("^", "s"), strict=True
):
    ax.loglog(tops, values, marker=marker, color=color, linestyle="-", label=name)
predicted = [mean.norm() / (variance + 2 * top**2).sqrt() for top in tops]
ax.loglog(
    tops, predicted, color="0.5", linestyle="--", label="predicted for a Gaussian q"
)
ax.axhline(len(noise) ** -0.5, color="0.6", linestyle=":", linewidth=1)
ax.text(tops[0], 1.1 * len(noise) ** -0.5, "Monte-Carlo floor", color="0.4", fontsize=8)
ax.set(xlabel="$σ_{max}$", ylabel="error of the mean / spread of q", ylim=(5e-3, 50))
ax.legend(fontsize=9)
figures.show(
    fig,
    alt="Error of the sample mean in units of the true spread against σ_max, log-log. "
    "Started around D(x; λ) the error stays near the Monte-Carlo floor over most of "
    "the range; started around the origin it follows the prediction with slope −1.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

From the mean of $q$, a $\sigma_{\max}$ of a few λ is enough. From the origin the whole cloud is shifted, by about its own spread at $\sigma_{\max} = 10\lambda$.

</details>

## Where D is exact, one call beats every sampler

Now that we can sample $q_\lambda$, should we? The paper wants the mean of $q_\lambda$ and takes one draw $y$ for it. By (M4.5) a draw of a correct sampler is unbiased, and $N$ of them have the mean square error

$$
\mathbb E\,\Bigl|\tfrac1N\textstyle\sum_i y_i - D(x;\lambda)\Bigr|^2 = \frac{\operatorname{tr}\operatorname{Cov}_q}{N} = \frac{\lambda^2}{N}\operatorname{tr}\frac{\partial D}{\partial x}. \tag{M4.10}
$$

So the efficiency of Eq. 17, signal over noise and cost, has a closed form, computable for any differentiable denoiser without drawing anything:

$$
\varepsilon = \frac{|m|^2}{\mathrm{MSE}\cdot\text{calls}} = \frac{|D(x;\lambda)-x|^2}{\lambda^2\operatorname{tr}(\partial D/\partial x)\cdot\text{calls}}. \tag{M4.11}
$$

But the mean that all these draws try to estimate is itself *one call*: $D(x;\lambda)$. If $D$ is the true denoiser, nothing that draws can beat it.

**Predict.** As λ → 0, does the signal-to-noise ratio of a single draw settle, grow or fall?
"""

# %%
x, λ = queries["trunk"], 0.1
target = p.denoise(x, λ)
runs = pick(smoke=256, laptop=2048)
calls, errors = {}, {}
for name, kernel, steps in (
    ("exact, 32 steps", "exact", 32),
    ("exact, 6 steps", "exact", 6),
    ("exponential, 32 steps", "exponential", 32),
):
    denoise = counted(p.denoise)
    y = draw(denoise, x.expand(runs, 2), λ, karras_sigmas(steps, 1e-3, 5.0), kernel)
    N = 2 ** torch.arange(int(math.log2(runs)) - 3)
    averages = [y.reshape(-1, int(k), 2).mean(1) - target for k in N]
    calls[name] = denoise.calls * N
    errors[name] = torch.stack(
        [a.square().sum(-1).mean().sqrt() / (target - x).norm() for a in averages]
    )
levels = torch.logspace(-3, 0.3, 24, dtype=torch.float64).tolist()

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.6))
for (name, error), color, marker in zip(
    errors.items(), (figures.GREEN, figures.SKY, figures.RED), "^vs", strict=True
):
    left.loglog(
        calls[name], error, marker=marker, color=color, linestyle="-", label=name
    )
left.plot(1, 1e-3, "D", color=figures.BLUE, markersize=9, clip_on=False)
left.annotate(
    "one call of D(x; λ): error 0, below the axis",
    (1, 1e-3),
    (1.8, 1.5e-3),
    color=figures.BLUE,
)
left.set(
    title="trunk, λ = 0.1",
    xlabel="denoiser calls for each estimate",
    ylabel="error of m(x) / |m|",
    ylim=(1e-3, 10),
    xlim=(0.6, 3e4),
)
left.legend(fontsize=8, loc=(0.4, 0.3))
for name, x in queries.items():
    color, marker = asked[name]
    signal = [
        (p.denoise(x, λ) - x).square().sum() / moments(p.product(x, λ))[1]
        for λ in levels
    ]
    right.loglog(
        levels,
        signal,
        color=color,
        marker=marker,
        markevery=3,
        linestyle="-",
        label=name,
    )
right.axhline(1, color="0.6", linestyle=":", linewidth=1)
right.set(
    title="|m|² / variance of one draw",
    xlabel="bandwidth λ",
    ylabel="signal to noise",
    ylim=(1e-5, 1e4),
)
right.legend(fontsize=8)
figures.show(
    fig,
    alt="Left: relative error of m against denoiser calls, log-log. Exact sampling "
    "falls with slope −½, the exponential sampler stays at its bias, one call has "
    "error zero. Right: signal to noise of one draw falls like λ² on the trunk and "
    "twig, is largest in the gap, near λ = 0.007.",
)

# %% tags=["check"]
for (name, x), λ in zip(queries.items(), (0.1, 0.05, 0.2), strict=True):
    J = torch.autograd.functional.jacobian(lambda x, λ=λ: p.denoise(x, λ), x)
    y = draw(p.denoise, x.expand(runs, 2), λ, karras_sigmas(32, 1e-3, 5.0), "exact")
    measured, predicted = (
        (y - p.denoise(x, λ)).square().sum(-1).mean(),
        λ**2 * J.trace(),
    )
    print(
        f"{name:5}: mean square error of one draw {measured:.5f}, λ² tr ∂D/∂x = "
        f"{predicted:.5f}"
    )
    assert abs(measured / predicted - 1) < pick(smoke=0.35, laptop=0.15)

x, tiny = queries["trunk"], 1e-4
limit = p.score(x).square().sum() * tiny**2 / 2
ratio_at_zero = (p.denoise(x, tiny) - x).square().sum() / moments(p.product(x, tiny))[1]
print(f"λ → 0: signal to noise over λ²|∇log p|²/d = {ratio_at_zero / limit:.6f}")
assert abs(ratio_at_zero / limit - 1) < 1e-3

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

On the fractal it falls like $\lambda^2|\nabla\log p|^2/d$: $m$ shrinks like $\lambda^2$ and the scatter like λ, so an annealed run ends in noise. In the gap a draw is worth much more for kernels narrower than the gap and wider than the branches are thick: then all of $q$ lies in one direction.

</details>

The sum of scores is a flat line: no variance, and a bias that no $N$ removes. It is cheaper than averaging exact draws down to that bias, it looks perfect if its error is measured against its own mean, and one call beats both.

Two reasons to sample remain. A learned $D$ is not the true one: it was trained on noisy inputs, and $D(x;\lambda)$ asks about a clean $x$. Chapter 07 measures it. And a *guided* $D$ is nobody's posterior mean, which is the next section.

### Exercise 4.3 · Efficiency without drawing (★★, 15 min)

Write (M4.11) for a single float64 point `x` of shape (d,) and any differentiable denoiser. For an image the full Jacobian is out of reach; how would you estimate its trace with Jacobian-vector products?
"""


# %% tags=["exercise"]
def one_sample_efficiency(denoise, x, bandwidth, calls):
    raise NotImplementedError  # your code


checks.one_sample_efficiency(one_sample_efficiency)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def one_sample_efficiency(denoise, x, bandwidth, calls):
    J = torch.autograd.functional.jacobian(lambda x: denoise(x, bandwidth), x)
    signal = (denoise(x, bandwidth) - x).square().sum()
    return signal / (bandwidth**2 * J.trace() * calls)


# For an image: the mean of vᵀ(∂D/∂x)v over random signs v, by torch.func.jvp.
checks.one_sample_efficiency(one_sample_efficiency)

# %% [markdown]
r"""
### Exercise 4.4 · What a chain of single draws seeks (★★★, 25 min)

Follow Eq. 11 with full steps at a fixed bandwidth: draw $y\sim q_\lambda(\cdot\mid x)$, go there, draw again. This is a Markov chain. It does not converge to a mode. What is its stationary density? Write `log_stationary(mixture, y, bandwidth)`, up to a constant. Hint: find $\pi$ such that $\pi(x)\,q_\lambda(y\mid x)$ is symmetric in $x$ and $y$.
"""


# %% tags=["exercise"]
def log_stationary(mixture, y, bandwidth):
    raise NotImplementedError  # your formula


checks.log_stationary(log_stationary)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def log_stationary(mixture, y, bandwidth):
    # q(y|x) = p(y) N(y; x, λ²)/p_λ(x), so π(x) = p(x) p_λ(x) makes
    # π(x) q(y|x) = p(x) p(y) N(y; x, λ²).
    return mixture.log_prob(y) + mixture.log_prob(y, bandwidth)


checks.log_stationary(log_stationary)
pair = GaussianMixture(
    torch.tensor([0.7, 0.3]), torch.tensor([[-0.5], [0.6]]), torch.full((2, 1, 1), 0.04)
)
y, λ = pair.sample(pick(smoke=300, laptop=3000), generator=generator), 0.6
for _ in range(12):
    y = draw(pair.denoise, y, λ, karras_sigmas(12, 1e-2, 3.0), "exact")
line = torch.linspace(-3, 3, 2001, dtype=torch.float64)[:, None]
stationary = log_stationary(pair, line, λ).softmax(0)
print(
    f"share left of 0: chain {(y < 0).double().mean():.3f}, stationary "
    f"{stationary[line[:, 0] < 0].sum():.3f}, p itself 0.7"
)

# %% [markdown]
r"""
## What guidance changes

Guidance replaces $D$ by $D_g = D_u + s\,(D_c - D_u)$, with $D_c$ the denoiser of a class (a prompt) and $D_u$ that of everything ([Ho and Salimans, 2021](https://arxiv.org/abs/2207.12598)). (The paper writes $(1+w)\,\epsilon_c - w\,\epsilon_u$ in Eq. 13; $s = 1 + w$.) What one would *want* is clear enough: sharpen the class, stay near $x$,

$$
q^*(y) \propto p_c(y)^s\,p_u(y)^{1-s}\,\mathcal N(y; x,\lambda^2I). \tag{M4.12}
$$

$D_g$ does not do that ([Bradley and Nakkiran, 2025](https://arxiv.org/abs/2408.09000)): at σ > 0 it is not the denoiser of $p_c^s\,p_u^{1-s}$. In general it is no density's denoiser: $s\,\partial D_c - (s-1)\,\partial D_u$ can have a negative eigenvalue, and a covariance cannot. So neither fact of (M4.5) survives. One thing does. (M4.9) only moves the input, and guidance is linear in the output, so the two commute: the product of guided denoisers is the guided product.

We take the simplest case, where (M4.12) is an integral on a line. The class is $\mathcal N(0.5, 0.2^2)$, "everything" is an equal mixture of it and another class at 1.5, and $x = 1$ lies exactly between them, λ = 0.3.

**Predict.** At $x$, $D_u = 1$ by symmetry and $D_c \approx 0.65$. Where does $D_g(x;\lambda)$ point for $s = 7.5$? And will a sampler make it worse or better?
"""

# %%
classes = torch.full((1, 1, 1), 0.2**2)
p_c = GaussianMixture(torch.ones(1), torch.tensor([[0.5]]), classes)
p_u = GaussianMixture(
    torch.ones(2), torch.tensor([[0.5], [1.5]]), classes.repeat(2, 1, 1)
)
x, λ = torch.ones(1, dtype=torch.float64), 0.3
line = torch.linspace(-3, 3, 4001, dtype=torch.float64)[:, None]
scales = torch.linspace(1, 8, pick(smoke=4, laptop=15), dtype=torch.float64).tolist()


def wanted(s):
    """The normalised weights of (M4.12) on the line."""
    return (
        s * p_c.log_prob(line)
        + (1 - s) * p_u.log_prob(line)
        - (line[:, 0] - x) ** 2 / (2 * λ**2)
    ).softmax(0)


def guided_draws(s, kernel, n=500):
    y = draw(guided(p_c.denoise, p_u.denoise, s), x.expand(n, 1), λ, karras, kernel)
    return y[:, 0]


# %%
means = torch.stack([wanted(s) @ line[:, 0] for s in scales])
widths = (
    torch.stack([(wanted(s) @ line[:, 0] ** 2) for s in scales]).sub(means**2).sqrt()
)
single = torch.stack(
    [guided(p_c.denoise, p_u.denoise, s)(x[None], λ)[0, 0] for s in scales]
)
drawn_by = {
    kernel: torch.stack([guided_draws(s, kernel) for s in scales])
    for kernel in ("exact", "exponential")
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.5), width_ratios=(1, 1.15))
high = scales[-2]
left.plot(
    line,
    p_c.log_prob(line).exp() / 2,
    color=figures.BLUE,
    linestyle="-",
    label="½ class $p_c$",
)
left.plot(
    line, p_u.log_prob(line).exp(), color="0.6", linestyle=":", label="everything $p_u$"
)
left.plot(
    line,
    wanted(high) / (line[1] - line[0]),
    color=figures.BLACK,
    linestyle="--",
    label="wanted",
)
left.hist(
    drawn_by["exact"][-2].numpy(),
    bins=30,
    density=True,
    color=figures.GREEN,
    alpha=0.4,
    label="exact sampler",
)
left.axvline(1, color=figures.PINK, linewidth=1, linestyle="-.", label="x")
left.set(
    title=f"samples at s = {high:.3g}", xlabel="y", xlim=(-0.5, 2.1), ylim=(0, 5.8)
)
left.legend(fontsize=8, loc="upper right")
right.fill_between(scales, means - widths, means + widths, color="0.85", linewidth=0)
right.plot(scales, means, color=figures.BLACK, linestyle="--", label="wanted, ± spread")
for name, y in drawn_by.items():
    style = dict(zip(("color", "marker"), looks[name], strict=True)) | {
        "linestyle": "-",
        "markersize": 4,
        "capsize": 2,
    }
    right.errorbar(scales, y.mean(1), y.std(1), label=f"{name} sampler", **style)
right.plot(
    scales,
    single,
    color=figures.BLUE,
    marker="D",
    markersize=4,
    linestyle="-",
    label="one call $D_g(x; λ)$",
)
right.set(
    title="where each one goes", xlabel="guidance scale s", ylabel="y", ylim=(-1.9, 1.2)
)
right.legend(fontsize=8, loc="lower left")
figures.show(
    fig,
    alt="Guidance on a line. Left: class, mixture, wanted product, and exact samples, "
    "which lie left of it and are narrower. Right: against the guidance scale the "
    "wanted mean hardly moves, one call falls linearly below −1, the exact sampler "
    "drifts down.",
)

# %% tags=["check"]
print("  s    wanted          one call   exact           exponential")
for s in (1.0, 4.0, 7.5):
    weight = wanted(s)
    mean = weight @ line[:, 0]
    spread = (weight @ (line[:, 0] - mean) ** 2).sqrt()
    call = guided(p_c.denoise, p_u.denoise, s)(x[None], λ).item()
    e, k = guided_draws(s, "exact"), guided_draws(s, "exponential")
    print(
        f"{s:4}  {mean:6.3f} ± {spread:.3f}  {call:8.3f}   {e.mean():6.3f} ± "
        f"{e.std():.3f}  {k.mean():6.3f} ± {k.std():.3f}"
    )
    if s > 1:
        assert abs(e.mean() - mean) < 0.5 * abs(call - mean)
z = torch.randn(40, 1, dtype=torch.float64, generator=generator)
inside = product_denoiser(guided(p_c.denoise, p_u.denoise, 7.5), x, λ)(z, 0.7)
outside_in = guided(
    product_denoiser(p_c.denoise, x, λ), product_denoiser(p_u.denoise, x, λ), 7.5
)(z, 0.7)
print(
    "product of guided against guided product: largest difference "
    f"{(inside - outside_in).abs().max():.1e}"
)
assert (inside - outside_in).abs().max() < 1e-12

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The single call extrapolates a difference, linearly, and leaves the data altogether. A sampler does better: it asks again at smaller and smaller noise levels, and there both $D_c$ and $D_u$ say "you are off the data".

</details>

So here **sampling does beat the single call**. But it does not draw from (M4.12) either: the exact sampler of the unguided product is inexact under guidance, too narrow and carried too far, more so as $s$ grows.

The sum of scores does best on the mean in this example. It stays too close to $x$ (M4.8), guidance overshoots away from $x$, and two errors of opposite sign partly cancel. Its spread is zero as before.

### On the fractal

One line proves nothing. The table takes query points on class A and off it, $p_c$ being class A and $p_u$ both classes. The referee draws from the closed-form product and weighs, $q^* \propto q_c\,(p_c/p_u)^{s-1}$; the ratio is at most 2. All columns are errors over the wanted $m$, as $\sqrt{\sum_x|\text{error}|^2/\sum_x|m|^2}$: of one call, and of the mean of 20 draws by each sampler.

**Predict.** Where is one guided call still a usable step?
"""

# %%
both = fractal("AB")
Q, draws_each = pick(smoke=4, laptop=20), pick(smoke=8, laptop=20)
places = {
    "on": p.sample(Q, generator=generator),
    "off": 3 * torch.rand(Q, 2, dtype=torch.float64, generator=generator) - 1.5,
}


def guided_errors(x, λ, s):
    """Errors over the wanted m: one call, the means of both samplers."""
    y = torch.stack(
        [p.product(point, λ).sample(1000, generator=generator) for point in x]
    )
    weight = ((s - 1) * (p.log_prob(y) - both.log_prob(y))).softmax(-1)
    goal, strong = (weight[..., None] * y).sum(1), guided(p.denoise, both.denoise, s)
    errors = [(strong(x, λ) - goal).square().sum()]
    for kernel in ("exact", "exponential"):
        y = draw(strong, x.expand(draws_each, Q, 2), λ, karras, kernel)
        errors.append((y.mean(0) - goal).square().sum())
    return (torch.stack(errors) / (goal - x).square().sum()).sqrt().tolist()


print(f"{'':24}{'one call':>9} {'exact, mean':>11} {'sum of scores':>14}")
for place, λ, s in itertools.product(places, (0.3, 0.1), (2.0, 7.5)):
    call, exact, summed = guided_errors(places[place], λ, s)
    print(f"{place:4} λ = {λ}  s = {s}:    {call:9.2f} {exact:11.2f} {summed:14.2f}")

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

With mild guidance, on class A. With strong guidance it is off by a multiple of the step it should take, and most of all off the class, which is where a distillation *starts*.

</details>

With strong guidance the exact sampler limits the damage without repairing it, and the sum of scores, whose bias we have proved, has the smallest error of all: staying too close to $x$ is what an overshooting guide needs. A distillation should not ask which estimator is best, but when. Chapter 06 lets all of them run.

### Open task 4 · A kernel that is noised as well

Blurring the kernel as the density is blurred gives a third sum, $\nabla\log p_\sigma(z) + (x-z)/(\lambda^2+\sigma^2)$. It costs nothing, is never stiff, and is the score of $p_\sigma\cdot\mathcal N(\cdot\,; x,(\lambda^2+\sigma^2)I)$, so it too is right at σ = 0 only. Work out where it ends for $p=\mathcal N(0,s^2)$, as in (M4.8). Then correct it with a few Langevin steps at each level, as [Du et al. (2023)](https://arxiv.org/abs/2302.11552) propose, and draw its error against denoiser calls
next to the exact sampler's. Is there any λ, or any guidance scale, where you would choose it?

## Take-aways

- Averaging pre-drawn samples costs $N\propto\lambda^{-(d+2)}$ for a fixed relative error of $m$, and meets a wall off the data.
- $q_\lambda \propto p\cdot\mathcal N(x,\lambda^2I)$ has the mean $D(x;\lambda)$ and the covariance $\lambda^2\,\partial D/\partial x$, for any density.
- The sum of scores is not the score of the noised product. Its flow shrinks all randomness by $e^{-\sigma_{\max}^2/2\lambda^2}$ and ends in one biased point: a deterministic, too short mean-shift step.
- Two looks are one look: the product has the denoiser $D\bigl(\tfrac{\lambda^2z+\sigma^2x}{\lambda^2+\sigma^2};\tfrac{\lambda\sigma}{\sqrt{\lambda^2+\sigma^2}}\bigr)$, and any sampler can use it. Start at $D(x;\lambda)$.
- With a true $D$, one call of it beats every sampler. With a strongly guided one ($s = 7.5$, on the fractal) both samplers beat the call, and the sum of scores does best.

## What's next

We have treated the solver as given. Chapter 05 opens it: why the explicit step explodes and exactly when, what the exponential step of Eq. 15 costs in accuracy, which clock it needs, and how a limited kernel interval gives some of the lost spread back. Chapter 06 then lets the point $x$ move.
"""
