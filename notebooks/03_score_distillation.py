# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""
# Find out what score distillation does

You will take the gradient that made text-to-3D possible, turn it into a target, find the function that it descends, and measure where it goes, how often it steps backwards, and whether it ever stops.

*Reading and exercises: 95 minutes, 45 of them for the exercises. Computing: about three minutes on one CPU core, twenty seconds at `smoke`. Before this: chapters 01 and 02.*

## What you'll learn

- rewrite the SDS gradient as the gradient of $\tfrac12 w\,|x - \text{target}|^2$, in any notation, and convert its weights;
- compute the expected update, and the potential that it descends, by quadrature;
- locate and count the phantom modes of that potential, and explain why they are where they are;
- predict how far SDS fluctuates once it has converged;
- write distillation methods as one loop, and compare them on equal terms.
"""

# %%
import math

import matplotlib.pyplot as plt
import torch
from tqdm.auto import tqdm

from msd_teach import IdealDenoiser, distill, guided, karras_sigmas, sample
from msd_teach.lesson import checks, figures
from msd_teach.lesson.budget import pick
from msd_teach.lesson.explore import distillation_canvas
from msd_teach.plane.densities import eight_gaussians, fractal, pinwheel, spiral
from msd_teach.plane.landscape import (
    interpolate,
    mean_shift_potential,
    sds_field,
    sds_potential,
    stationary_points,
)

figures.use_style()

# %%
from msd_teach.sampling import vp_sigma
from msd_teach.schedules import (
    annealed,
    chain_rule_weight,
    dreamfusion_weight,
    linear,
    literal_weight,
    sigmas_around,
    uniform_sigma,
    uniform_time,
    unit_weight,
)
from msd_teach.targets import (
    ISM,
    MSD,
    PFD,
    SDI,
    SDS,
    VSD,
    MeanShift,
    Target,
    ideal_particles,
)

# %%
generator = torch.Generator().manual_seed(0)
p = fractal("A")  # the paper's orange class; both together are fractal("AB")
own = p.sample(20_000, generator=generator)
entropy = -p.log_prob(own).mean().item()
SIDE = pick(smoke=41, laptop=121)  # points a side of a lattice
LEVELS = pick(smoke=16, laptop=64)  # noise levels in a quadrature over σ
print(
    f"samples of p: mean −log p = {entropy:.2f} nats, standard deviation "
    f"{own.std(0).mean():.2f} a coordinate"
)

# %% [markdown]
r"""
## From a gradient to a target

Someone hands you a diffusion model and asks for *one* good image, or for one point $x$ that the model likes. There may be a renderer in between, $x = g(\vartheta)$, so sampling will not do: you need a gradient. Score distillation sampling ([Poole et al., 2023](https://arxiv.org/abs/2209.14988); [Wang et al., 2023](https://arxiv.org/abs/2212.00774)) adds noise to $x$, asks the network which noise it sees, and takes the difference for a gradient:

$$
\nabla_\vartheta \mathcal L_\text{SDS} = \mathbb E_{t,\epsilon}\bigl[\, w(t)\,\bigl(\hat\epsilon(z_t; t) - \epsilon\bigr)\bigr]\,\frac{\partial x}{\partial\vartheta}, \tag{1}
$$

with $z_t = \alpha x + \sigma_t\,\epsilon$, $\epsilon\sim\mathcal N(0, I)$ and $\alpha^2 + \sigma_t^2 = 1$.

In the plane $x$ *is* the parameter, and $\partial x/\partial\vartheta = I$. Chapter 02 gave the dictionary: $z = z_t/\alpha$, $\sigma = \sigma_t/\alpha$, $\hat\epsilon = (z - D(z; \sigma))/\sigma$. With $z = x + \sigma\epsilon$ one line follows,

$$
\hat\epsilon - \epsilon = \frac{x + \sigma\epsilon - D(z;\sigma)}{\sigma} - \epsilon = \frac{x - D(x + \sigma\epsilon;\,\sigma)}{\sigma}. \tag{M3.1}
$$

The noise cancels and a **target** is left. SDS pulls $x$ towards the denoised version of a noisy $x$; it is the gradient of $\tfrac12 w\,|x - \operatorname{sg}[D(x+\sigma\epsilon;\sigma)]|^2$, where sg (*stop gradient*) means that the target is taken for a constant. Recipes differ in the law of $\sigma$ and in the weight of this pull. DreamFusion's $w(t) = \sigma_t^2$ is the weight $w = \sigma/(1+\sigma^2)$ of $x - D$.

The check: a noise predictor in its own variables against automatic differentiation of the target's loss.
"""

# %% tags=["check"]
x = figures.lattice(8).requires_grad_()
for t in (0.1, 0.5, 0.9):
    sigma = vp_sigma(torch.tensor(t))
    alpha, sigma_t = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    epsilon = torch.randn(x.shape, dtype=x.dtype, generator=generator)

    z_t = alpha * x.detach() + sigma_t * epsilon
    predicted = (z_t - alpha * p.denoise(z_t / alpha, sigma)) / sigma_t
    eq_1 = sigma_t**2 * (predicted - epsilon)

    target = p.denoise(x + sigma * epsilon, sigma).detach()
    loss = (dreamfusion_weight(sigma) * (x - target).square()).sum() / 2
    (gradient,) = torch.autograd.grad(loss, x)
    print(
        f"t = {t}, σ = {sigma:6.3f}: largest difference "
        f"{(gradient - eq_1).abs().max():.1e}"
    )
    assert (gradient - eq_1).abs().max() < 1e-12

# %% [markdown]
r"""
<details>
<summary>Misprint: Eq. 1</summary>

The paper prints $z_t = \alpha(t)\,x + \epsilon$ with $\epsilon \sim \mathcal N(0, \sigma(t) I)$, and subtracts this $\epsilon = \sigma_t n$ from $\epsilon_\phi$. But a network predicts *unit* noise (by the paper's own Section 3.4, $\epsilon_\theta \approx -\sigma\,\nabla\log p$), so that even a perfect prediction leaves $n - \sigma_t n$. The mean survives, since $\mathbb E\,n = 0$; the variance does not vanish where it should. Take a single datum, $p = \delta_y$, and $x = y$: correct code moves by exactly 0.

</details>

### Exercise 3.1 · The target in a network's language (★, 10 min)

Your model is `predict(z_t, alpha_bar)`, a noise predictor. Given a clean float64 `x`, unit noise `n` of the same shape and the number $\bar\alpha = \alpha^2$, return the target $D(x + \sigma n; \sigma)$ of (M3.1). Three lines are enough, and each has a trap in it.
"""


# %% tags=["exercise"]
def sds_target(predict, x, n, alpha_bar):
    raise NotImplementedError  # your code


checks.sds_target(sds_target)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def sds_target(predict, x, n, alpha_bar):
    z_t = alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * n
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
    return x - sigma * (predict(z_t, alpha_bar) - n)  # (M3.1), solved for D


checks.sds_target(sds_target)

# %% [markdown]
r"""
## The function that SDS descends

One update is noise. What is it on average? Write $z = x + \sigma n$ and use Tweedie, $D(z) - z = \sigma^2\,\nabla\log p_\sigma(z)$:

$$
\mathbb E_n\bigl[x - D(x + \sigma n;\sigma)\bigr] = \mathbb E_n\bigl[z - \sigma n - D(z;\sigma)\bigr] = -\sigma^2\,\mathbb E_n\,\nabla\log p_\sigma(x + \sigma n) .
$$

The gradient may be taken outside. So the expected update is the gradient of a known function, and not only in the plane:

$$
\mathcal L_\text{SDS}(x) = -\,\mathbb E_{\sigma, n}\bigl[\,w(\sigma)\,\sigma^2\,\log p_\sigma(x + \sigma n)\bigr]. \tag{M3.2}
$$

Read it slowly. The density is blurred to $p_\sigma$, its logarithm is taken, and *the logarithm is blurred once more*. Level by level, up to the factor $w\sigma^2$ and a constant, it is the divergence $\mathrm{KL}\bigl(\mathcal N(x, \sigma^2 I)\,\|\,p_\sigma\bigr)$: SDS asks not how likely $x$ is, but how well a *blob* of width $\sigma$ around $x$ fits under the blurred density. And the logarithm punishes: where part of the blob sticks out into the void, $\log p_\sigma$ is very negative there, and $x$ must move until the whole blob is covered.

In the plane `sds_potential` and `sds_field` sum over fine grids of $\sigma$ and $n$. Three routes must agree: the field's quadrature, differences of the potential, and a plain Monte-Carlo mean of what SDS does.
"""

# %% tags=["check"]
x = torch.tensor([[0.9, -0.4], [0.3, 0.7], [-0.8, 0.2]], dtype=torch.float64)
field = sds_field(p, x)
nudges = 1e-4 * torch.eye(2, dtype=x.dtype)
slope = torch.stack(
    [(sds_potential(p, x + e) - sds_potential(p, x - e)) / 2e-4 for e in nudges], -1
)
print(
    "difference quotient of (M3.2) against the field: "
    f"{(slope - field).norm() / field.norm():.1e}"
)

n = pick(smoke=300, laptop=4000)
target = SDS()(p.denoise, x.repeat(n, 1), 0.0, generator)
updates = (target.weight[:, None] * (x.repeat(n, 1) - target.value)).reshape(n, 3, 2)
deviation = (updates.mean(0) - field) / (updates.std(0) / n**0.5)
print(
    f"mean of {n} SDS updates: at most {deviation.abs().max():.1f} standard errors "
    "from the field"
)
assert (slope - field).norm() < 1e-4 * field.norm()
assert deviation.abs().max() < 4.5

# %% [markdown]
r"""
From here on the mean update is `expected`, the field on a lattice, interpolated. Its slope is bounded: the Jacobian of $x - D$ is $I - \operatorname{Cov}[y\mid z]/\sigma^2$ (exercise 2.4), and a covariance is not negative, so no curvature of $\mathcal L_\text{SDS}$ exceeds $\mathbb E[w]$.

<details>
<summary>Erratum: Algorithm 1</summary>

It sets $y_i \leftarrow w(t)\,[\hat\epsilon - \epsilon]$, which already is the update, and then averages $y_i - x^k$. That adds $-x$ to the gradient. The function descended would be $\mathcal L_\text{SDS}(x) - \tfrac12|x|^2$, whose curvature is at most $\mathbb E[w] - 1$ in every direction. Where $\mathbb E[w] < 1$, as with DreamFusion's weight $w \le \tfrac12$, it has no minimum at all, and every run leaves for infinity. It is the line of Algorithm 2, where $y_i$ is a point. The mean of the $y_i$ alone is meant.

</details>
"""

# %% tags=["check"]
grid = figures.lattice(SIDE)
field = sds_field(p, grid, levels=LEVELS).reshape(SIDE, SIDE, 2)
expected = interpolate(field, span=1.5)
quantiles = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096


def hessian(x):
    """Second derivatives (n, 2, 2) of L_SDS at x (n, 2): differences of its field."""
    axes = 0.01 * torch.eye(2, dtype=torch.float64)
    slopes = [(expected(x + e) - expected(x - e)) / 0.02 for e in axes]
    return (torch.stack(slopes, -1) + torch.stack(slopes, -2)) / 2


bound = dreamfusion_weight(uniform_time()(quantiles, 0.0)).mean()
curvatures = torch.linalg.eigvalsh(hessian(0.9 * grid))
low, high = curvatures.min(), curvatures.max()
print(f"curvature of L_SDS: {low:.3f} to {high:.3f}; bound E[w] = {bound:.3f}")
assert high < bound + 2e-3

# %% [markdown]
r"""
## A phantom

Here is the fractal, its trunk about 0.03 wide and its twigs 0.01 (two standard deviations across); its SDS landscape, with DreamFusion's weight and $t$ uniform on Stable Diffusion's schedule; and two landscapes of mean shift, $-\lambda^2\log p_\lambda$. Mean shift finds the *modes* of $p_\lambda$. For SDS, call a minimum a **phantom mode**, for short a phantom, if $p$ is smaller there than at 99.9 % of its own samples.

**Predict.** Where is the minimum of the SDS landscape, and how many are there?
"""


# %%
def minima(field, span=1.5, n=SIDE):
    """Minima (m, 2) of the potential with gradient `field`, from an n × n lattice."""
    smooth = interpolate(field(figures.lattice(n, span)).reshape(n, n, 2), span)
    found = stationary_points(smooth, span, n)
    return found.points[found.downhill == 0]


def is_phantom(mixture, x):
    own = mixture.sample(
        pick(smoke=2000, laptop=20_000), generator=torch.Generator().manual_seed(0)
    )
    return mixture.log_prob(x) < mixture.log_prob(own).quantile(0.001)


# %% tags=["hide-input"] jupyter={"source_hidden": true}
def landscape(ax, potential, found, mixture, size=SIDE, span=1.5):
    """A potential, its real minima as white discs, its phantoms as red crosses."""
    axis = torch.linspace(-span, span, size)
    level = (potential - potential.min()).sqrt().reshape(size, size)
    ax.contourf(axis, axis, level, 24, cmap="cividis_r")
    ax.contour(axis, axis, level, 12, colors="white", linewidths=0.3, linestyles="-")
    phantom = is_phantom(mixture, found)
    figures.points(
        ax,
        found[~phantom],
        "white",
        size=26,
        alpha=1,
        linewidths=1,
        edgecolors=figures.BLACK,
    )
    figures.points(
        ax,
        found[phantom],
        figures.RED,
        "X",
        size=90,
        alpha=1,
        linewidths=0.8,
        edgecolors="white",
    )


# %%
found = minima(lambda x: sds_field(p, x, levels=LEVELS))
phantom = found[0]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(
    ["density $p$", "$L_{SDS}$", "$L_{MS}$, λ = 0.2", "$L_{MS}$, λ = 0.03"], width=8.0
)
figures.density(axes[0], p)
landscape(axes[1], sds_potential(p, grid, levels=LEVELS), found, p)
for ax, bandwidth in zip(axes[2:], (0.2, 0.03), strict=True):
    modes = minima(lambda x, λ=bandwidth: x - p.denoise(x, λ))
    landscape(ax, mean_shift_potential(p, grid, bandwidth), modes, p)
    print(
        f"mean shift, λ = {bandwidth}: {len(modes)} modes, worst −log p "
        f"{-p.log_prob(modes).min():.2f}"
    )
figures.points(
    axes[0],
    found,
    figures.RED,
    "X",
    size=90,
    alpha=1,
    linewidths=0.8,
    edgecolors="white",
)
print(
    f"SDS: {len(found)} minimum, {is_phantom(p, found).sum()} phantom, at "
    f"{phantom.numpy().round(3)}"
)
print(
    f"  −log p there {-p.log_prob(phantom):.1f}; mean of p "
    f"{(p.weights @ p.means).numpy().round(3)}"
)
figures.show(
    fig,
    alt="A branching density and three landscapes. SDS is a smooth bowl with "
    f"{len(found)} minimum, a red cross in a gap between branches. Mean shift with λ "
    "= 0.2 is a bowl whose minimum lies on a branch; with λ = 0.03 its minima follow "
    "the branches.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

One for the whole fractal, in a gap between branches: a phantom, more than $e^{20}$ times less likely than a typical sample.

</details>

It lies a few thousandths from the **mean** of the data. The landscape has forgotten the branches.

Does this depend on how $\sigma$ is drawn and weighed? The paper does not give its law. Two are natural in the plane, $\sigma$ uniform up to 5, and $t$ uniform on a variance-preserving schedule. Four weights are in use, with $\bar\alpha = \alpha^2$:

| recipe | in Eq. 1 | weight $w(\sigma)$ of $x - D$ |
|---|---|---|
| DreamFusion and most code | $w(t) = \sigma_t^2 = 1 - \bar\alpha$, without the chain rule's $\partial z_t/\partial x = \alpha$ | $\sigma/(1+\sigma^2)$ |
| the same with the chain rule | $(1 - \bar\alpha)\,\alpha$ | $\sigma/(1+\sigma^2)^{3/2}$ |
| the paper's Eq. 1 | $\alpha$ | $1/(\sigma\sqrt{1+\sigma^2})$ |
| its $\alpha$ read as a weight, with the chain rule | $\alpha^2$ | $1/(\sigma\,(1+\sigma^2))$ |

That makes eight versions of "SDS". By (M3.2) level $\sigma$ counts with the share $w(\sigma)\,\sigma^2 \times$ its probability. Beside each minimum we print how much of this budget goes to noise larger than the data, $\sigma > 0.34$.

**Predict.** Does a change of the law help, or one of the weight? Read the table in both directions.
"""


# %%
def eq_1_weight(sigma):
    return 1 / (sigma * (1 + sigma**2).sqrt())


laws = {"t uniform": uniform_time(), "σ uniform": uniform_sigma()}
weights = {"DreamFusion": dreamfusion_weight, "chain rule": chain_rule_weight}
weights |= {"Eq. 1: α": eq_1_weight, "Eq. 1: α²": literal_weight}
print(f"{'':12}" + "".join(f"{law:>40}" for law in laws))
columns = f"{'σ > 0.34':>12} {'phantom':>8} {'−log p':>7} {'|x − mean|':>10}"
print(f"{'weight':12}" + 2 * columns)
for name, weight in tqdm(weights.items(), leave=False):
    cells = []
    for law in laws.values():
        x = minima(
            lambda x, law=law, w=weight: sds_field(p, x, law, w, levels=LEVELS),
            n=pick(smoke=31, laptop=61),
        )
        budget = weight(law(quantiles, 0.0)) * law(quantiles, 0.0) ** 2
        share = budget[law(quantiles, 0.0) > 0.34].sum() / budget.sum()
        far = (x - p.weights @ p.means).norm(dim=-1).mean()
        lost = f"{is_phantom(p, x).sum()} of {len(x)}"
        cells.append(
            f"{share:12.1%} {lost:>8} {-p.log_prob(x).mean():7.1f} {far:10.3f}"
        )
    print(f"{name:12}" + "".join(cells))

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Neither alone. With the usual weights practically the whole budget is spent on noise that swallows the data, and it is all one how $\sigma$ is drawn. The $1/\sigma$ of Eq. 1 leaves a few per cent to small levels. With $t$ uniform the minimum is then half as deep in the gap and still a phantom; only with $\sigma$ uniform as well does it reach the trunk.

</details>

The eight versions differ by more than twenty nats on this density (the two last rows are good to about a nat). A table that says "SDS" and a number is hard to compare with unless it says which of the eight.

Is the fractal a malicious choice?

**Predict.** Pinwheel, eight Gaussians on a circle, spiral: where will SDS put its minimum? In which of the three is it a phantom?
"""

# %%
others = {
    "pinwheel": pinwheel(),
    "eight Gaussians": eight_gaussians(),
    "spiral": spiral(),
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(list(others), width=6.4)
for ax, (name, mixture) in zip(axes, others.items(), strict=True):
    x = minima(
        lambda x, mixture=mixture: sds_field(mixture, x, levels=LEVELS // 2), n=61
    )
    phantom_here = is_phantom(mixture, x)
    figures.density(ax, mixture, pixels=200)
    potential = sds_potential(mixture, figures.lattice(61), levels=LEVELS // 2).reshape(
        61, 61
    )
    axis = torch.linspace(-1.5, 1.5, 61)
    ax.contour(
        axis,
        axis,
        (potential - potential.min()).sqrt(),
        7,
        colors="0.45",
        linewidths=0.7,
    )
    figures.points(
        ax,
        x[~phantom_here],
        "white",
        size=40,
        alpha=1,
        linewidths=1.2,
        edgecolors=figures.BLACK,
    )
    figures.points(
        ax,
        x[phantom_here],
        figures.RED,
        "X",
        size=90,
        alpha=1,
        linewidths=0.8,
        edgecolors="white",
    )
    usual = -mixture.log_prob(mixture.sample(4000, generator=generator)).mean()
    print(
        f"{name:16} {len(x)} minimum at −log p = {-mixture.log_prob(x[0]):5.1f}; "
        f"samples of the density {usual:5.2f}"
    )
figures.show(
    fig,
    alt="Contours of the SDS potential over three densities: a pinwheel, eight "
    "Gaussians on a circle, and a spiral. All contours are nearly circles around the "
    "centre, with one minimum there: a red cross in the holes of the first two, a "
    "disc on the spiral.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Always at the mean. That is a phantom where the density has nothing in its middle: in the first two.

</details>

## Why the mean

For noise much larger than the data, $p_\sigma$ is nearly the Gaussian $\mathcal N(\mu, \Sigma + \sigma^2 I)$, so $-\log p_\sigma$ is a parabola, and blurring a parabola only lifts it. With an isotropic spread $s$,

$$
\mathcal L_\text{SDS}(x) \approx \tfrac12\,\mathbb E_\sigma\!\Bigl[\frac{w\,\sigma^2}{\sigma^2 + s^2}\Bigr]\,|x - \mu|^2 + \text{const}. \tag{M3.3}
$$

For a Gaussian this is exact, and the minimum is its mode; there SDS is right. For everything else, large noise leads to the mean. But the second blur matters even when the noise is *not* large. Take two equal point masses at $\pm a$. Mean shift sees two modes as long as $\lambda < a$ (chapter 01). The curvature of the SDS potential halfway between them is, with $p_\sigma \propto e^{-z^2/2\sigma^2}\cosh(az/\sigma^2)$,

$$
\mathcal L''(0) \;\propto\; 1 - r^2\;\mathbb E\bigl[\operatorname{sech}^2(r\,n)\bigr], \qquad r = a/\sigma. \tag{M3.4}
$$

**Predict.** Since $\operatorname{sech} \le 1$, SDS loses the two modes earlier than mean shift. At $\sigma = 0.9\,a$, at $0.7\,a$, at $0.5\,a$?
"""


# %%
def two_masses(x, sigma, blur):
    """−log p_σ of masses at ±1, or its average over x + σn with `blur`."""
    n = torch.linspace(-8, 8, 401, dtype=torch.float64) * blur
    mass = (-(n**2) / 2).softmax(0)
    z = (x[:, None] + sigma * n)[..., None]
    log_p = (-((z - torch.tensor([-1.0, 1.0])) ** 2) / (2 * sigma**2)).logsumexp(-1)
    return -(sigma**2) * (log_p @ mass)


def curvature(ratio):  # (M3.4) at σ = ratio · a
    n = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    return 1 - (1 / ratio) ** 2 * (-(n**2) / 2).softmax(0) @ torch.cosh(n / ratio) ** -2


def merging(function, low=0.3, high=2.0):
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return middle


# %%
merge = merging(curvature)
line = torch.linspace(-1.7, 1.7, 241, dtype=torch.float64)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 3, figsize=(9.4, 3.0), width_ratios=(1, 1, 1.1))
for ax, blur, title in ((axes[0], 0, "mean shift, λ/a ="), (axes[1], 1, "SDS, σ/a =")):
    for level, color, style in zip(
        (0.5, 0.7, 0.9, 1.1), figures.PALETTE, figures.LINES, strict=False
    ):
        curve = two_masses(line, level, blur)
        ax.plot(
            line, curve - curve.min(), color=color, linestyle=style, label=f"{level}"
        )
    ax.plot(
        [-1, 1],
        [-0.02, -0.02],
        "^",
        color=figures.BLACK,
        markersize=7,
        clip_on=False,
        linestyle="",
    )
    ax.set(title=title, xlabel="x / a", ylim=(-0.02, 0.44))
    ax.legend(fontsize=8, loc="upper center", ncols=2, handlelength=2.6)
axes[0].set_ylabel("potential above its minimum")
ratios = torch.linspace(0.35, 1.6, 120)
axes[2].plot(
    ratios, 1 - 1 / ratios**2, color=figures.BLUE, linestyle="-", label="mean shift"
)
axes[2].plot(
    ratios,
    [curvature(r) for r in ratios.tolist()],
    color=figures.RED,
    linestyle="--",
    label="SDS",
)
axes[2].axhline(0, color="0.6", linewidth=0.8, linestyle="-")
axes[2].plot([merge, 1], [0, 0], "o", color=figures.BLACK, markersize=6, linestyle="")
axes[2].annotate(
    f"σ = {merge:.3f} a",
    (merge, 0),
    (0.45, 0.45),
    fontsize=9,
    arrowprops={"arrowstyle": "-", "lw": 0.7},
)
axes[2].set(title="curvature halfway", xlabel="σ/a or λ/a", ylim=(-2, 1))
axes[2].legend(fontsize=8, loc="lower right")
figures.show(
    fig,
    alt="Potentials for two point masses at plus and minus a. Mean shift keeps two "
    "minima until λ = a. The SDS potential has a single minimum halfway between them "
    f"from σ = {merge:.3f} a on; its curvature there, in the right panel, crosses "
    "zero at that point.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

By $0.7\,a$ they are gone: it needs noise below $0.685\,a$ to tell two masses apart, at a single level, whatever its weight.

</details>

There the blurred density still has two clean modes, and SDS one minimum, in the void between them.

### Exercise 3.2 · Two modes with a width (★★, 15 min)

Real modes are not points. Let $p = \tfrac12\mathcal N(-a, s^2) + \tfrac12\mathcal N(a, s^2)$ in one dimension. Return the second derivative at $x = 0$ of $-\sigma^2\,\mathbb E_n\log p_\sigma(x + \sigma n)$, as a number from numbers. Two widths come in: the blurred components have the variance $v = s^2 + \sigma^2$, the second blur only $\sigma^2$. With it the solution asks: can wide modes survive more noise than narrow ones?
"""


# %% tags=["exercise"]
def sds_curvature(a, s, sigma):
    raise NotImplementedError  # your code


checks.sds_curvature(sds_curvature)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def sds_curvature(a, s, sigma):
    # −log p_σ = z²/2v − log cosh(az/v) + const, and (log cosh)'' = sech².
    v = s**2 + sigma**2
    n = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    sech2 = torch.cosh(a * sigma * n / v) ** -2
    return float(sigma**2 * (1 / v - (a / v) ** 2 * (-(n**2) / 2).softmax(0) @ sech2))


checks.sds_curvature(sds_curvature)
for s in (0.0, 0.2, 0.5, 0.8):
    sds = merging(lambda sigma, s=s: sds_curvature(1.0, s, sigma), 0.01)
    print(
        f"width s = {s:.1f} a: SDS merges at σ = {sds:.3f} a, mean shift at λ = "
        f"{math.sqrt(1 - s**2):.3f} a"
    )

# %% [markdown]
r"""
## How often does it step backwards?

A real run takes single samples. Follow the expected field from a corner down to the phantom, and draw many single updates at points on the way. Which share has a negative product with the expected update, and how large is the scatter?

**Predict.** Far away, and close to the minimum: what share of the steps goes backwards?
"""


# %%
def single_updates(method, denoise, x, n):
    """n independent updates w (x − target) at every x (m, 2): (n, m, 2)."""
    stack = x.repeat(n, 1)
    target = method(denoise, stack, 0.0, generator)
    return (
        torch.as_tensor(target.weight).reshape(-1, 1) * (stack - target.value)
    ).reshape(n, *x.shape)


road = [torch.tensor([[-1.0, 1.3]], dtype=torch.float64)]
while (road[-1] - phantom).norm() > 0.01:
    road.append(road[-1] - 0.3 * expected(road[-1]))
road = torch.cat(road)
gap = (road - phantom).norm(dim=-1)
n = pick(smoke=100, laptop=1000)
stops = road[:: max(1, len(road) // pick(smoke=6, laptop=14))]
wrong, noise = {}, {}
for name, method in {
    "t uniform": SDS(),
    "σ uniform": SDS(sigma=uniform_sigma()),
}.items():
    updates, mean = (
        single_updates(method, p.denoise, stops, n),
        sds_field(p, stops, method.sigma),
    )
    wrong[name] = ((updates * mean).sum(-1) < 0).double().mean(0)
    noise[name] = updates.var(0).sum(-1).sqrt() / mean.norm(dim=-1)

# %%
reach = (stops - phantom).norm(dim=-1)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (first, second, third) = plt.subplots(
    1, 3, figsize=(9.4, 3.1), width_ratios=(1, 1.1, 1.1)
)
first.set(
    title="the road, and 25 targets",
    xlim=(-0.3, 1.1),
    ylim=(-0.3, 1.1),
    aspect="equal",
    xticks=[],
    yticks=[],
)
first.spines[:].set(visible=True, color="0.8", linewidth=0.8)
figures.density(first, p, pixels=160)
first.plot(*road.T, color=figures.BLACK, linewidth=1.2, linestyle="-")
here = road[(gap < 0.35).nonzero()[0, 0]].repeat(25, 1)
targets = SDS()(p.denoise, here, 0.0, torch.Generator().manual_seed(3)).value
figures.arrows(first, here, targets - here, figures.RED, alpha=0.7)
first.plot(*here[0], "o", color=figures.BLACK, markersize=5)
for name, color, marker in (
    ("t uniform", figures.RED, "s"),
    ("σ uniform", figures.ORANGE, "D"),
):
    second.semilogx(
        reach,
        wrong[name],
        marker=marker,
        color=color,
        linestyle="-",
        label=f"SDS, {name}",
    )
    third.loglog(
        reach,
        noise[name],
        marker=marker,
        color=color,
        linestyle="-",
        label=f"SDS, {name}",
    )
for ax, value in ((second, 0.5), (third, 1.0)):
    ax.axhline(value, color="0.5", linestyle=":", linewidth=1)
    ax.set(xlabel="distance to the phantom", xlim=(2.3, 0.008))
second.text(2, 0.47, "a coin", fontsize=8, color="0.4")
second.set(title="share of steps backwards", ylim=(0, 0.53))
third.set(title="scatter / length of the mean update")
second.legend(fontsize=8, loc="center left")
figures.show(
    fig,
    alt="Left, the road from a corner to the phantom with 25 SDS targets of one point "
    "on it as arrows, which scatter around the road. Middle, the share of steps that "
    f"go backwards rises from {wrong['t uniform'][0]:.0%} far away to "
    f"{wrong['t uniform'][-1]:.0%} near the minimum. Right, scatter over mean rises "
    f"to {noise['t uniform'][-1]:.0f}.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Far from the data almost none, since large noise and a far mean agree. A hundredth away from the minimum, two in five.

</details>

SDS is not a noisy compass everywhere: as the mean update shrinks the scatter stays. Mean shift draws nothing; its share and its scatter are 0.

<details>
<summary>Convention: the SDS gradient of Section 4.1</summary>

For the ideal denoiser the paper prints $\mathbb E\bigl[w(t)\,(z_t - D^*(z_t;\sigma_t))/\sigma_t\bigr]$. As an *expectation*, in the variance-exploding form of Eq. 16 ($\alpha = 1$), it is right. Two traps wait for those who copy it into a program. **With the schedule of Eq. 1** $z_t$ holds $\alpha y$, so $\hat\epsilon = (z_t - \alpha D^*)/\sigma_t$; without the $\alpha$ the phantom is pushed away from the origin. **As a single sample** it lacks the $-\epsilon$. That leaves the mean alone ($\mathbb E\,\epsilon = 0$), but $\hat\epsilon = \epsilon + (x - D)/\sigma$ then carries the whole injected noise into the update: a control variate of coefficient 1 has been thrown away.

</details>

## It never settles

Gradient descent with a noisy gradient and a fixed step does not converge to a point. Near the minimum let the field be $H(x - x^*)$ and the scatter of a single update $C$. Then $x \leftarrow x - \eta\,(\text{update})$ is a linear process, and its covariance $S$ in the long run satisfies

$$
S = (I - \eta H)\,S\,(I - \eta H) + \eta^2 C. \tag{M3.5}
$$

### Exercise 3.3 · The cloud at the end (★★★, 20 min)

Solve (M3.5): given a symmetric float64 `H` (d, d) with eigenvalues in $(0, 2/\eta)$, a covariance `C` and the number `eta`, return $S$. In the eigenbasis of $H$ the equation falls apart into one for each entry.
"""


# %% tags=["exercise"]
def stationary_covariance(H, C, eta):
    raise NotImplementedError  # your code


checks.stationary_covariance(stationary_covariance)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
@checks.unless_solved
def stationary_covariance(H, C, eta):
    h, Q = torch.linalg.eigh(H)
    kept = 1 - eta * h  # the factor by which a deviation shrinks in a step
    return Q @ (eta**2 * (Q.mT @ C @ Q) / (1 - kept[:, None] * kept)) @ Q.mT


checks.stationary_covariance(stationary_covariance)

# %% [markdown]
r"""
Both $H$ and $C$ can be measured without a run. Then 400 chains put the prediction to the test.
"""

# %% tags=["check"]
H = hessian(phantom[None])[0]
C = single_updates(SDS(), p.denoise, phantom[None], pick(smoke=500, laptop=4000))[
    :, 0
].T.cov()
data = p.sample(pick(smoke=500, laptop=3000, gpu=10_000), generator=generator)
denoise = IdealDenoiser(data)
for eta in (0.5, 2.0):
    predicted = stationary_covariance(H, C, eta).diagonal().mean().sqrt()
    x = phantom.repeat(pick(smoke=100, laptop=400), 1)
    for _ in range(pick(smoke=40, laptop=100)):
        x = x - eta * single_updates(SDS(), denoise, x, 1)[0]
    measured = x.std(0).square().mean().sqrt()
    print(
        f"η = {eta}: standard deviation predicted {predicted:.4f}, of {len(x)} chains "
        f"{measured:.4f}"
    )
    assert abs(measured / predicted - 1) < pick(smoke=0.5, laptop=0.25)

# %% [markdown]
r"""
The cloud is several twigs wide, and has nothing to do with the twigs. "Run it longer" does not help: it shrinks only with $\eta$ or with more samples an update.

The paper uses Adam, 150 steps at rate 0.08. Here is how far points still move in ten steps, during a run twice as long. The third curve has no noise at all: its "method" is five lines, since a method is anything that returns a target.

**Predict.** Adam divides by the size of the gradient. Will sixteen samples an update calm it by a factor of 4, as in (M3.5)?
"""


# %%
def run(method, x, steps=150, denoise=denoise, seed=1, **options):
    """States (steps + 1, n, 2) under Adam, as in the paper, and the calls a point."""
    x = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.08)
    states = [x.detach().clone()]
    options["generator"] = torch.Generator().manual_seed(seed)
    for _info in distill(lambda _: x, optimizer, denoise, method, steps, **options):
        states.append(x.detach().clone())
    return torch.stack(states), _info.calls


def expected_sds(denoise, x, progress, generator):
    """SDS with infinitely many samples: the target is a step of its mean field."""
    return Target(x - expected(x), 1.0, 0, math.nan)


# %%
bandwidth = linear(
    0.316 / math.sqrt(2), 0.003
)  # the paper's 0.316 as a standard deviation
start = figures.lattice(pick(smoke=5, laptop=11))
steps = pick(smoke=40, laptop=300)
long_runs = {
    "SDS, 1 sample": SDS(),
    "SDS, 16 samples": SDS(samples=16),
    "SDS, expected": expected_sds,
    "mean shift, λ = 0.1": MeanShift(linear(0.1, 0.1)),
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6.6, 3.4))
late = {}
for i, (name, method) in enumerate(tqdm(long_runs.items(), leave=False)):
    states, _ = run(method, start, steps)
    moved = (states[10:] - states[:-10]).norm(dim=-1).median(dim=-1).values
    late[name] = moved[-40:].mean().item()
    ax.semilogy(
        range(10, steps + 1),
        moved,
        color=figures.PALETTE[i],
        linestyle=figures.LINES[i],
        label=name,
    )
    print(f"{name:20} median way in ten steps, at the end: {late[name]:.1e}")
ax.set(xlabel="step", ylabel="way in the last ten steps", ylim=(1e-7, 3))
ax.legend(fontsize=9, loc="lower left")
figures.show(
    fig,
    alt=f"Median distance that points move in ten Adam steps, over {steps} steps, log "
    f"scale. SDS with one sample ends at {late['SDS, 1 sample']:.2f}, with 16 samples "
    f"at {late['SDS, 16 samples']:.2f}, the expected SDS at "
    f"{late['SDS, expected']:.0e}, mean shift at {late['mean shift, λ = 0.1']:.0e}.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

By less: Adam divides by $\sqrt v$, and where the noise is four times smaller the effective step is longer.

</details>

A run of SDS ends when you stop it: after seventy steps nothing changes any more but the noise. The two runs without noise converge, both at the pace of Adam, so the restlessness is not the optimiser's. The dash-dotted curve is the one to remember. Take all the noise out of SDS, and it converges quickly and reliably, to the phantom. Variance can be bought off with samples. The bias stays.

## Break it: begin with the answer

**Predict.** Start SDS on *samples of p*. What does it do with them, and how soon?
"""


# %% tags=["break-it"]
def close_up(ax, x):
    """Shows class A alone, with the mean −log p of points x in the corner."""
    ax.set(xlim=(-0.7, 1.5), ylim=(-0.65, 1.55))
    figures.density(ax, p, pixels=160)
    score = f"mean −log p = {-p.log_prob(x).mean():.1f}".replace("-", "−")
    ax.text(0.04, 0.03, score, transform=ax.transAxes, fontsize=9)


samples = p.sample(pick(smoke=60, laptop=400), generator=generator)
ruined, _ = run(SDS(), samples)
for k in (0, 10, 150):
    kept_share = (-p.log_prob(ruined[k]) < 3).double().mean()
    print(f"after {k:3} steps {kept_share:4.0%} have −log p < 3, as on a branch")
kept, _ = run(MeanShift(linear(0.03, 0.003)), samples)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(
    ["samples of p", "SDS, 10 steps", "SDS, 150 steps", "mean shift, λ ≤ 0.03"],
    width=7.6,
)
views = (
    (samples, figures.BLACK),
    (ruined[10], figures.RED),
    (ruined[-1], figures.RED),
    (kept[-1], figures.BLUE),
)
for ax, (x, color), marker in zip(axes, views, "osso", strict=True):
    close_up(ax, x)
    figures.points(ax, x, color, marker, size=7)
figures.show(
    fig,
    alt="Samples of the fractal, and the same points after 10 and 150 Adam steps of "
    "SDS, which sweeps them off the branches into a blob at the phantom, and after "
    "mean shift with a falling small bandwidth, which leaves them on the branches.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Ten steps take two thirds of the points off the branches. Those that are on one later are there by chance, where the blob lies across it.

</details>

A method whose update vanishes at good points would have left them alone; the one on the right moves points only along the branches, to the next local summit.

## Break it: more guidance

DreamFusion's answer to all this was guidance with a weight of 100. Guided scores are linear in the two scores, $D_g = u + s\,(c - u)$, and so is everything that we averaged: the field of guided SDS is exactly $s\,F_A - (s-1)\,F_{AB}$, with $F_A$ from class A and $F_{AB}$ from both classes. No new computation is needed.

**Predict.** Class A lies in the upper right; the mean of both classes is near the origin. Where does guidance push the phantom?
"""

# %% tags=["break-it"]
both, σ = fractal("AB"), uniform_time()(quantiles, 0.0)
n, span = pick(smoke=41, laptop=101), 3.0
F_A, F_AB = (
    sds_field(q, figures.lattice(n, span), levels=LEVELS // 2).reshape(n, n, 2)
    for q in (p, both)
)
variance = [q.sample(4000, generator=generator).var(0).mean() for q in (p, both)]
k_A, k_AB = (
    (dreamfusion_weight(σ) * σ**2 / (σ**2 + v)).mean() for v in variance
)  # the stiffness in (M3.3)
μ_A, μ_AB = (q.weights @ q.means for q in (p, both))

measured, parabola = {}, {}
for s in (1, 2, 4, 7.5, 20):
    found = stationary_points(interpolate(s * F_A - (s - 1) * F_AB, span), span, n)
    measured[s] = found.points[found.downhill == 0][0]
    parabola[s] = (s * k_A * μ_A - (s - 1) * k_AB * μ_AB) / (s * k_A - (s - 1) * k_AB)
    print(
        f"s = {s:4g}: minimum at {measured[s].numpy().round(2)}, −log p = "
        f"{-p.log_prob(measured[s]):6.0f};",
        end=" ",
    )
    print(f"of the parabola {parabola[s].numpy().round(2)}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (ax,) = figures.planes(["minimum of guided SDS"], width=3.8)
ax.set(xlim=(-0.8, 3.7), ylim=(-0.8, 3.7))
figures.density(ax, p, pixels=200)
walk = torch.stack(list(measured.values()))
ax.plot(*walk.T, color=figures.RED, linewidth=1, linestyle="--")
figures.points(
    ax, walk, figures.RED, "X", size=80, alpha=1, linewidths=0.8, edgecolors="white"
)
circles = {"size": 130, "alpha": 1, "linewidths": 1, "edgecolors": figures.BLACK}
figures.points(ax, torch.stack(list(parabola.values())), "none", **circles)
for s, x in measured.items():
    ax.annotate(
        f"s = {s:g}", x.tolist(), (10, -12), textcoords="offset points", fontsize=9
    )
figures.show(
    fig,
    alt="The fractal's class A in the upper right of a plane, and the minimum of the "
    "guided SDS potential for five guidance scales, red crosses in circles that show "
    "the prediction. It leaves the density along the diagonal, far outside at s = 20.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Away from the other class, and right out of its own.

</details>

Guidance turns one phantom into another. The circles come from (M3.3) alone: with its two stiffnesses, $k = \mathbb E[w\sigma^2/(\sigma^2+s_{\text{data}}^2)]$ for each density, the guided parabola has its minimum at

$$
x^* = \frac{s\,k_A\,\mu_A - (s-1)\,k_{AB}\,\mu_{AB}}{s\,k_A - (s-1)\,k_{AB}}. \tag{M3.6}
$$

Means and variances explain the walk to about a tenth of its length; not one branch of the fractal comes into it.

## Many targets, one loop

| method | target | drawn anew in each step | calls |
|---|---|---|---|
| SDS ([Poole et al., 2023](https://arxiv.org/abs/2209.14988)) | $D(x + \sigma n; \sigma)$ | $\sigma$, $n$ | 1 |
| SDS, annealed | the same, $\sigma = \lambda_k$ falling | $n$ | 1 |
| SDI ([Lukoianov et al., 2024](https://arxiv.org/abs/2405.15891)) | $D(x + \sigma\,\kappa(x); \sigma)$, $\kappa$ by inverting $x$ | little | ≤ 11 |
| ISM ([Liang et al., 2024](https://arxiv.org/abs/2311.11284)) | $x - \sigma_t\,[\hat\epsilon(z_t) - \hat\epsilon(z_s)]$, both on the inverted path | $t$, a little $n$ | ≤ 7 |
| VSD ([Wang et al., 2023](https://arxiv.org/abs/2305.16213)) | $x - [D_\text{particles}(z; \sigma) - D(z; \sigma)]$ | $\sigma$, $n$ | 2 |
| mean shift | $D(x; \lambda_k)$ | nothing | 1 |
| MSD ([Thamizharasan et al., 2025](https://arxiv.org/abs/2502.15989)) | a sample of $p(y)\,\mathcal N(y; x, \lambda_k^2 I)$ | $n$ | a sampler's |

They differ in what noise they add to $x$ before they ask the denoiser. SDS adds fresh noise; **annealed**, at the level that mean shift and MSD have for a bandwidth, it is our control. SDI looks for the noise that *would have led* to $x$, by inverting the flow of chapter 02; ISM compares two points of an inverted path. VSD subtracts what a second denoiser says, one that knows the distribution of the current points: on images a trained network, here `IdealDenoiser(x)`. Mean shift adds none. MSD follows in chapters 04 to 06; take it as a black box that draws a point of $p$ near $x$.

<details>
<summary>Aside: whose settings</summary>

SDI runs as its authors do in 3-D, a new target for each step and $\sigma$ down to 0.7, and as they do in 2-D: 40 targets, 25 steps of Adam towards each, $\sigma$ down to 0.06. ISM has the settings of the released code. The settings of both come from latents of Stable Diffusion. In our plane the first of ten inversion steps goes from σ = 0.03, about the width of the trunk, to σ = 0.34, the spread of the data, and extrapolates $x - D$ elevenfold. Judge them by images (chapter 09), not by these panels.

</details>

All get the same start, the same Adam, the same $D^*$.

**Predict.** Rank them by mean $-\log p$.
"""

# %%
methods = {
    "SDS, t uniform": SDS(),
    "SDS, Eq. 1, σ uniform": SDS(sigma=uniform_sigma(), weight=eq_1_weight),
    "SDS annealed": SDS(sigma=annealed(bandwidth), weight=unit_weight),
    "SDI": SDI(),
    "SDI, 25 steps a target": SDI(time=linear(0.98, 0.02)),
    "ISM": ISM(),
    "VSD": VSD(ideal_particles),
    "mean shift": MeanShift(bandwidth),
    "MSD, exact": MSD("exact", bandwidth, sigmas_around(pick(smoke=6, laptop=24))),
}
own_pace = {
    "SDI, 25 steps a target": {
        "steps": pick(smoke=4, laptop=40),
        "steps_per_target": 25,
    }
}

# %%
start = figures.lattice(pick(smoke=5, laptop=17, gpu=41))
ends, calls = {}, {}
print(
    f"{'':22} {'−log p: mean':>13} {'median':>8} {'spread':>8} {'late way':>9} "
    f"{'calls':>6}"
)
for name, method in tqdm(methods.items(), leave=False):
    pace = own_pace.get(name, {"steps": pick(smoke=30, laptop=150)})
    states, calls[name] = run(method, start, **pace)
    ends[name] = states[-1]
    nll, way = (
        -p.log_prob(ends[name]),
        (states[-1] - states[-11:][0]).norm(dim=-1).mean(),
    )
    spread = ends[name].std(0).mean()
    print(
        f"{name:22} {nll.mean():13.2f} {nll.median():8.2f} {spread:8.3f} {way:9.4f} "
        f"{calls[name]:6}"
    )
print(
    f"{'samples of p':22} {entropy:13.2f} {-p.log_prob(own).median():8.2f} "
    f"{own.std(0).mean():8.3f}"
)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(list(methods), rows=3, width=7.0)
kin = {
    "SDS": figures.RED,
    "SDI": figures.GREEN,
    "ISM": figures.GREEN,
    "VSD": figures.PINK,
}  # else blue
for ax, (name, x) in zip(axes, ends.items(), strict=True):
    color = (
        figures.ORANGE if name == "SDS annealed" else kin.get(name[:3], figures.BLUE)
    )
    close_up(ax, x)
    figures.points(ax, x, color, size=9, alpha=0.75)
figures.show(
    fig,
    alt="End points of nine methods over the fractal, from the same lattice of "
    "starts. SDS: a blob in a gap, or a cloud. SDI: a dot in another gap; with 25 "
    "steps a target on branches and between them. ISM: along branches, some astray. "
    "VSD: as wide as the data, blurred. Annealed SDS, mean shift and MSD on the trunk.",
)

# %% [markdown]
r"""
Each step of SDI or ISM draws one $t$ for the whole batch. So before we read their rows, the same runs with other seeds.
"""

# %%
SEEDS = range(pick(smoke=2, laptop=8))
print(
    f"−log p after each of {len(SEEDS)} runs: median, mean, share of points with less "
    "than 3"
)
for name, seeds in {
    "SDI": SEEDS[:2],
    "SDI, 25 steps a target": SEEDS,
    "ISM": SEEDS,
}.items():
    pace, cells = own_pace.get(name, {"steps": pick(smoke=30, laptop=150)}), []
    for seed in seeds:
        v = -p.log_prob(run(methods[name], start, seed=seed, **pace)[0][-1])
        cells.append(
            f"{v.median():6.1f} {v.mean():4.0f} {(v < 3).double().mean():4.0%}"
        )
    print(f"{name:23}", " |".join(cells))

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Mean shift lowest, MSD close behind, annealed SDS next to them, all below the samples of $p$; then the others, in an order that for ISM hangs on the seed.

</details>

**Mean shift** gathers all but a few points on the densest spot of the trunk, without a random number, with one call a step. **MSD** does nearly the same with noise and 48 calls, and **annealed SDS** with one. On this density, with these settings, the decisive step from "SDS" to "MSD" is not the product sampler; it is letting the noise level fall to the scale of the twigs. All three seek modes: the variety is gone, as the spread shows.

**VSD** has the right spread and is out of focus. In the mean its force is $\nabla\log p_\sigma - \nabla\log q_\sigma$ with $q$ the density of the points, so it stops when $q = p$: exact VSD is a sampler, not a mode seeker. But the levels that DreamFusion's law draws only fix the coarse moments.

**ISM** leaves between a fifth and two thirds of the points on branches, by the seed. **SDI** with a new target for every step lands in the void: its points stop where one giant Euler step back from the inverted noise returns to $x$, which does not ask whether $p(x)$ is large. With 25 steps a target about three in ten end on a branch.

## One more target, which stands still

**PFD** ([Ramanan and Rajagopalan, 2026](https://arxiv.org/abs/2605.09071)) goes the whole way: up by inversion, down again by the sampler, and where that ends is the target. Its authors promise that the distribution is kept.

**Predict.** Without guidance nothing tells the way up from the way down. Let the solver be nearly exact, and no noise be added on the way. Which points does such a target move?
"""

# %% tags=["check"]
smooth, x, gaps = eight_gaussians(), figures.lattice(9), []
for steps in (160, 320, 640):
    there_and_back = PFD(time=linear(0.6, 0.6), noise=0.0, steps=steps, solver="heun")
    back = there_and_back(smooth.denoise, x, 0.0, generator).value
    gaps.append((back - x).norm().item())
print("|target − x| on a lattice:", *(f"{gap:.1e}" for gap in gaps))
assert gaps[2] < gaps[1] / 4 < gaps[0] / 16

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

None: the gap falls with the cube of Heun's step.

</details>

Up and down undo each other, so **every** $x$ is a fixed point, and every distribution is kept, right or wrong. What moves a picture under PFD is the noise that is added on the way and the *difference* of guidance between the two ways.

## Figure 1 of the paper

(a) The density with two classes, (b) DDIM with 32 steps and guidance, (c) SDS and (d) MSD, both without guidance, 150 Adam steps at rate 0.08. (The paper's $w = 4$ is our $s = 5$; the original toy's code has $s = 4$.) For SDS and MSD we show single samples, and as crosses the limit of infinitely many: the quadrature field for SDS, mean shift for MSD. A cross is as large as the number of points on it.
"""

# %%
z = 5 * torch.randn(len(start), 2, dtype=torch.float64, generator=generator)
levels = karras_sigmas(32, 0.002, 5.0)
ddim = {}
for s in (1, 4, 5):
    *_, ddim[s] = sample(guided(p.denoise, both.denoise, s), z, levels, solver="euler")
limit = run(expected_sds, start)[0][-1]
rows = {
    "(a) samples of p": own[: len(start)],
    "(b) DDIM-32, s = 4": ddim[4],
    "    DDIM-32, s = 5 (w = 4)": ddim[5],
    "    DDIM-32, unguided": ddim[1],
    "(c) SDS, 1 sample": ends["SDS, t uniform"],
    "    SDS, expected": limit,
    "(d) MSD, 1 sample": ends["MSD, exact"],
    "    MSD, expected": ends["mean shift"],
}
for name, x in rows.items():
    nll = -p.log_prob(x)
    print(
        f"{name:28} mean −log p {nll.mean():6.2f}, median {nll.median():6.2f}, "
        f"{len(x)} points"
    )
print(f"entropy of the density {entropy:.2f}")

# %%
other = fractal("B").sample(600, generator=generator)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(
    ["(a) the density", "(b) DDIM-32, guided", "(c) SDS", "(d) MSD"], rows=2, width=6.6
)
for ax in axes:
    figures.points(ax, other, "0.7", marker="+", size=12, linewidths=0.6, alpha=1)
    figures.points(
        ax,
        own[:1500],
        figures.ORANGE,
        size=5 if ax is axes[0] else 3,
        alpha=0.8 if ax is axes[0] else 0.3,
    )
figures.points(axes[1], ddim[4], figures.BLUE, "^", size=14)
for ax, one, mean in (
    (axes[2], "SDS, t uniform", limit),
    (axes[3], "MSD, exact", ends["mean shift"]),
):
    figures.points(ax, ends[one], figures.BLUE, "^", size=14, label="one sample a step")
    near = (torch.cdist(mean, mean) < 0.02).sum(1)
    look = {"alpha": 1, "linewidths": 0.5, "edgecolors": "white", "label": "expected"}
    figures.points(ax, mean, figures.BLACK, "X", 12 + 60 * near / near.max(), **look)
    ax.legend(loc="upper left", fontsize=8, handletextpad=0.1, borderpad=0.1)
for ax, name in zip(axes, [key for key in rows if key[0] == "("], strict=True):
    score = f"mean −log p = {-p.log_prob(rows[name]).mean():.2f}".replace("-", "−")
    ax.text(0.04, 0.04, score, transform=ax.transAxes, fontsize=9)
figures.show(
    fig,
    alt="The paper's Figure 1. (a) A tree of two classes, orange dots and grey "
    "crosses. (b) Guided DDIM samples fill the outer orange branches and leave out "
    "others. (c) SDS points form a blob in a gap around the expected end. (d) MSD "
    "points lie on the orange trunk.",
)

# %% [markdown]
r"""
(c) is confirmed: 36 nats in the paper's Table 2, about 22 here. (b) is confirmed: guidance drops whole branches, and its score is *worse* than the unguided sampler's, since it crowds the thin outer twigs and overshoots some.

(d) differs in kind. MSD is on the density, and its score beats the paper's −1.32. But its points gather on the trunk, while the paper's still cover a third of the density (recall 0.33). The likely reason is the bandwidth: at the first λ, 0.22 as a standard deviation, the fractal has a single mode, and 150 steps of Adam are plenty to get there.

## Play with it

The canvas computes everything in your browser. A press restarts.

**Predict.** Choose SDS and switch the annealing off. At which σ do the points leave the twigs for the gap? Then switch it on: does it end like MSD? Below the canvas, the same one level at a time, by quadrature.
"""

# %%
distillation_canvas(p, points=100)

# %%
for level in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6):
    law = annealed(linear(level, level))
    sds = minima(lambda x, law=law: sds_field(p, x, law, unit_weight, levels=1))
    modes = minima(lambda x, λ=level: x - p.denoise(x, λ))
    print(
        f"SDS at σ = {level:4}: −log p at its minimum {-p.log_prob(sds).mean():6.2f}",
        end=";   ",
    )
    print(f"mean shift at λ = {level:4}: {-p.log_prob(modes).mean():6.2f}")

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Between 0.2 and 0.3, long before mean shift does with the same number as its bandwidth.

</details>

This is (M3.4) at work on a real tree, and it is why annealing repairs so much: on this fractal, of spread .34, SDS at a level below a fifth is a mode seeker.
"""

# %% [markdown]
r"""
### Open task 3 · The best SDS there is

(M3.2) leaves two functions free, the law of $\sigma$ and the weight; only their product with $\sigma^2$ matters. Find the one whose minima on the fractal are closest to the modes of $p_{0.03}$, all ten of them, without annealing. Does it still pull a point in from the corner of the plane in 150 steps? What does it cost in variance?
"""

# %% [markdown]
r"""
## Take-aways

- SDS pulls $x$ towards $D(x + \sigma n; \sigma)$. Its recipes differ in the law of $\sigma$ and in one weight; what counts is the product of the two, and how much of it is left for small levels.
- It descends $-\mathbb E[w\sigma^2\log p_\sigma(x + \sigma n)]$: a blur, a logarithm, another blur. Two point masses at $\pm a$ merge at $\sigma = 0.685\,a$, where mean shift still tells them apart.
- With the usual weights its minimum was near the mean of the data on all four densities here. Where the density has a gap there, it is a phantom. Guidance moves it; it does not bring it back.
- Far away SDS steps are nearly all right; near the end, on the fractal, two in five go backwards. The cloud that remains is predicted by a linear recursion.
- More samples remove the variance, not the bias. Annealing the noise level removes most of the bias.

## What's next

Mean shift looked unbeatable here, because our denoiser is exact. A network's denoiser has never seen an $x$ without noise. The paper's answer is to *sample* near $x$ instead of asking at $x$. Chapter 04 derives the density to sample from, and how to do it without error.
"""
