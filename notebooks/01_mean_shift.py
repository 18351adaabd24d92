# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""
# Climb a density by averaging

You will build mean shift, an uphill walk that never asks for a slope: look around, average what you see, go there, repeat. By the end it finds the colours of a photograph, and you will know why every step goes up, how fast, and where it stops.

*Reading and exercises: 85 minutes, 45 of them for the exercises. Computing: under a minute at `laptop` on two CPU cores, ten seconds at `smoke`. Before this: multivariable calculus and PyTorch tensors.*

## What you'll learn

- derive mean shift as a fixed point, and prove that its step is a gradient, $m = \lambda^2 \nabla\log p_\lambda$;
- bound the ascent of a step from below, and find the step length at which the promise ends;
- tell the modes of a smoothed density from the modes of the density, and count how they merge;
- predict the speed of convergence from one eigenvalue;
- cluster a photograph's colours.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from skimage import color, data, transform
from sklearn.cluster import MeanShift
from sklearn.metrics import adjusted_rand_score
from tqdm.auto import tqdm

from msd_teach import GaussianMixture, IdealDenoiser, eight_gaussians, fractal, pinwheel
from msd_teach.lesson import checks, explore, figures
from msd_teach.lesson.budget import pick

figures.use_style()
generator = torch.Generator().manual_seed(0)

# %% [markdown]
r"""
## See a density through a kernel

Let $p$ be a density on $\mathbb R^d$, and let $\mathcal N(u;\lambda^2 I)$ be a Gaussian of standard deviation $\lambda$, the **bandwidth**. Smoothing $p$ with it gives

$$
p_\lambda(x) = \int \mathcal N(x-y;\,\lambda^2 I)\,p(y)\,dy. \tag{2}
$$

Often $p$ is known only through samples $y_1,\dots,y_M$. Then the integral becomes an average, a bump on every datum: the **kernel density estimate**. The bandwidth decides what
counts as one thing. Our density is a pinwheel of five vanes, and we are given 300 points of it.

**Predict.** Three bandwidths: 0.015, 0.07 and 0.4. Which shows dozens of things, which five, which one?
"""

# %%
truth = pinwheel()
sampled = truth.sample(300, generator=generator)
# A data set is a mixture whose components have no width of their own.
estimate = GaussianMixture(
    torch.ones(300), sampled, 1e-12 * torch.eye(2).repeat(300, 1, 1)
)

bandwidths = (0.015, 0.07, 0.4)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = figures.planes(
    ["300 samples", *(f"$p_\\lambda$, λ = {λ}" for λ in bandwidths)], span=0.95
)
figures.points(axes[0], sampled)
for ax, λ in zip(axes[1:], bandwidths, strict=True):
    figures.density(ax, estimate, λ)
figures.show(
    fig,
    alt="Left, 300 samples of a pinwheel with five vanes. Then their kernel density "
    "estimates: dozens of specks at bandwidth 0.015, five vanes at 0.07, a single "
    "round hill at 0.4.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

At 0.015 the vanes fall apart into specks, many of them single data. At 0.07 there are five; at 0.4 only one hill is left.

</details>

There is no true bandwidth: λ is how coarsely you ask. In this book a bandwidth is always a standard deviation. The paper's kernel $e^{-|x|^2/\lambda^2}$ has the deviation $\lambda/\sqrt 2$, so $\lambda = \lambda_\text{paper}/\sqrt2$.

## From a stationary point to an iteration

Where does $p_\lambda$ have its summits? Differentiate under the integral. The Gaussian gives back itself times $-(x-y)/\lambda^2$, so

$$
\begin{aligned}
\nabla p_\lambda(x) &= \int \nabla_x\,\mathcal N(x-y;\lambda^2 I)\,p(y)\,dy \cr
&= -\frac1{\lambda^2}\int (x-y)\,\mathcal N(x-y;\lambda^2 I)\,p(y)\,dy.
\end{aligned} \tag{3, 4}
$$

At a stationary point the right-hand side is zero, and the integral splits: $x$ times the total weight equals the weighted sum of the $y$. Solve for the $x$ that stands outside the kernel, and call it $x'$:

$$
x' = \frac{\int y\,\mathcal N(x-y;\lambda^2 I)\,p(y)\,dy}{\int \mathcal N(x-y;\lambda^2 I)\,p(y)\,dy}. \tag{5}
$$

With samples both integrals become sums:

$$
x' = \frac{\sum_i \mathcal N(x-y_i;\lambda^2 I)\,y_i}{\sum_i \mathcal N(x-y_i;\lambda^2 I)}. \tag{7}
$$

This is an average of $p$, weighted by nearness to $x$. The right-hand side still contains $x$, so it is no solution, but it can be iterated: replace $x$ by $x'$ and average again. That is **mean shift**, introduced by [Fukunaga and Hostetler (1975)](https://doi.org/10.1109/TIT.1975.1055330) and made famous in computer vision by [Comaniciu and Meer (2002)](https://doi.org/10.1109/34.1000236).

<details>
<summary>Misprint: Eq. 4</summary>

The paper prints $\nabla p^*_\lambda = \int c_\lambda (x-y)\,G_\lambda(x-y)\,p(y)\,dy$. But $G_\lambda(u) = c_\lambda e^{-|u|^2/\lambda^2}$ has the gradient $-\tfrac{2}{\lambda^2}\,u\,G_\lambda(u)$, and $c_\lambda$ is already inside $G_\lambda$. So the factor is $-2/\lambda_\text{paper}^2$, that is $-1/\lambda^2$. The zeros are the same; the sign, printed as it is, would lead downhill.

</details>

Automatic differentiation knows nothing of our algebra, so let it judge:
"""

# %% tags=["check"]
x = truth.sample(64, sigma=0.1, generator=generator).requires_grad_()
for λ in (0.05, 0.2, 0.8):
    difference = x[:, None] - sampled
    kernel = torch.exp(-difference.square().sum(-1) / (2 * λ**2)) / (
        2 * torch.pi * λ**2
    )
    (gradient,) = torch.autograd.grad(kernel.mean(1).sum(), x)
    integral = (difference * kernel[..., None]).mean(1).detach()
    factor = (gradient * integral).sum() / integral.square().sum()
    error = float((gradient + integral / λ**2).abs().max() / gradient.abs().max())
    print(
        f"λ = {λ}: ∇p_λ = {factor:8.3f} × integral;  −1/λ² = {-1 / λ**2:8.3f}, "
        f"largest error {error:.1e}"
    )
    assert error < 1e-12

# %% [markdown]
r"""
### Exercise 1.1 · One step on data (★, 10 min)

Write Eq. 7 for float64 tensors: all the points `x` (n, d) move at once, each to the average of the `points` (M, d), weighted by a Gaussian of standard deviation `bandwidth`. The checker also asks about a query so far away that every weight underflows to zero; the average is still well defined there. Which function of PyTorch normalises exponentials safely?
"""


# %% tags=["exercise"]
def mean_shift_step(x, points, bandwidth):
    raise NotImplementedError  # your code


checks.mean_shift_step(mean_shift_step)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
@checks.unless_solved
def mean_shift_step(x, points, bandwidth):
    squares = (x[:, None] - points).square().sum(-1)  # (n, M)
    # The kernel's constant cancels; softmax subtracts the largest exponent first.
    return (-squares / (2 * bandwidth**2)).softmax(-1) @ points


checks.mean_shift_step(mean_shift_step)

# %% [markdown]
r"""
## The step is a gradient

Divide Eq. 4 by $p_\lambda$ and compare with Eq. 5. The weighted average of $x-y$ is $x - x'$, so the **mean-shift vector** $m(x) = x' - x$ satisfies

$$
m(x) = \lambda^2\,\frac{\nabla p_\lambda(x)}{p_\lambda(x)} = \lambda^2\,\nabla\log p_\lambda(x). \tag{M1.1}
$$

So mean shift is gradient ascent after all, on the *logarithm* of the smoothed density, with a step length that nobody had to choose: $\lambda^2$. Where the density is low the gradient of $p_\lambda$ is tiny and plain gradient ascent crawls; dividing by $p_\lambda$ undoes that.

There is a second reading. Draw a clean point $y\sim p$ and blur it, $x = y + \lambda n$ with $n\sim\mathcal N(0, I)$. By Bayes' rule the density of $y$ given $x$ is proportional to $p(y)\,\mathcal N(x-y;\lambda^2 I)$, and Eq. 5 is its mean. **The mean-shift step is a denoiser**, $x' = D(x;\lambda) = \mathbb E[y\mid x]$. The library gives it for a mixture in closed form, as `mixture.denoise(x, λ)`, and for data as `IdealDenoiser(points)(x, λ)`. Chapter 02 follows this thread; here we only use the two functions.

The paper's Eq. 6 has $m \propto p_\lambda\,\nabla p_\lambda$, a product where (M1.1) has a quotient. Both point the same way.

**Predict.** Over 1000 points near the pinwheel, by what factor does $|m|/|p_\lambda\nabla p_\lambda|$ vary? And $|m|\,/\,|\nabla p_\lambda/p_\lambda|$?
"""

# %% tags=["check"]
λ = 0.1
x = truth.sample(1000, sigma=0.2, generator=generator).requires_grad_()
log_density = truth.log_prob(x, λ)
(score,) = torch.autograd.grad(log_density.sum(), x)
x, density = x.detach(), log_density.exp().detach()
m = truth.denoise(x, λ) - x

gradient = density[:, None] * score
printed = m.norm(dim=-1) / (density[:, None] * gradient).norm(dim=-1)
correct = m.norm(dim=-1) / (gradient / density[:, None]).norm(dim=-1)
print(f"|m| / |p ∇p| varies by a factor of {printed.max() / printed.min():.1e}")
print(
    f"|m| / |∇p/p| varies by a factor of {correct.max() / correct.min():.12f}, and is "
    f"λ² = {correct.mean():.12f}"
)

by_hand = (mean_shift_step(x, sampled, λ) - IdealDenoiser(sampled)(x, λ)).abs().max()
error = (m - λ**2 * score).abs().max()
print(
    f"largest error: D(x) − x against λ²∇log p {error:.1e}; your Eq. 7 against "
    f"IdealDenoiser {by_hand:.1e}"
)
assert error < 1e-12
assert by_hand < 1e-12

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The first by many powers of ten, the second not at all: it is $\lambda^2$ at every point.

</details>

## Walk uphill

The whole algorithm is one line in a loop. We keep a step length η for later; η = 1 is mean shift.

**Predict.** Points start on a lattice, λ = 0.1. Each vane of the pinwheel is a ridge. Do the points stop on the ridge where they reach it, or go on along it?
"""


# %%
def climb(denoise, x, bandwidth, steps, eta=1.0):
    """All states of x ← x + η (D(x; λ) − x), the start first."""
    states = [x]
    for _ in range(steps):
        states.append(states[-1] + eta * (denoise(states[-1], bandwidth) - states[-1]))
    return states


states = climb(truth.denoise, figures.lattice(9, span=1.2), bandwidth=0.1, steps=200)
heights = torch.stack([truth.log_prob(x, 0.1) for x in states])  # (201, 81)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4), width_ratios=[1, 1.15])
left.set(
    title="81 points climb, λ = 0.1", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal"
)
figures.density(left, truth, 0.1)
figures.points(
    left, states[0], color="white", size=14, edgecolors=figures.RED, linewidths=0.8
)
figures.paths(left, states, color=figures.RED)
left.set_axis_off()
right.semilogy(
    (heights[-1] - heights)[:100],
    color=figures.BLUE,
    linestyle="-",
    linewidth=0.7,
    alpha=0.6,
)
right.set(
    title="height of log $p_\\lambda$ still to climb",
    xlabel="iteration",
    ylim=(1e-10, 100),
    xlim=(0, 100),
)
figures.show(
    fig,
    alt="Left: paths of 81 lattice points over a pinwheel density, rushing to the "
    "nearest vane and then sliding along it to one of five summits. Right: the height "
    "still to climb, falling in every step (largest rise "
    f"{-heights.diff(dim=0).min():.0e}).",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

They go on. The first step or two jump onto the ridge, however far away it was; then the walk along the ridge takes its time.

</details>

Both phases follow from (M1.1): across the ridge λ² is a generous step length, along it a timid one. The straight lines in the right panel say that the height still to climb shrinks by a fixed factor a step. That factor is the square of the one for distances, which we shall predict. One curve waits on a plateau for sixty steps before it falls; it, too, will be explained.

Now take it in your own hands. Press to drop points; drag the bandwidth; the arrow keys work too.

**Predict.** At which bandwidth do the five vanes lose their separate summits?
"""

# %%
explore.mean_shift_canvas(truth, bandwidth=0.1)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Near λ = .24. The section *How fast?* finds the same number from an eigenvalue.

</details>

## Every step climbs

Gradient ascent with a fixed step may overshoot. Mean shift cannot, on any density. Write $q(y) \propto p(y)\,\mathcal N(x-y;\lambda^2I)$ for the weights of the average, so that $\mathbb E_q[y] = x' = x + m$. For any $\eta$,

$$
\log\frac{p_\lambda(x+\eta m)}{p_\lambda(x)}
= \log \mathbb E_q\!\left[\frac{\mathcal N(x+\eta m-y)}{\mathcal N(x-y)}\right]
\;\ge\; \mathbb E_q\!\left[\frac{|x-y|^2-|x+\eta m-y|^2}{2\lambda^2}\right],
$$

where the inequality is Jensen's. The difference of squares is $2\eta\,m\cdot(y-x) - \eta^2|m|^2$, and $q$ averages $y-x$ to $m$. Hence

$$
\log p_\lambda(x+\eta m) - \log p_\lambda(x) \;\ge\; \eta\,(2-\eta)\,\frac{|m|^2}{2\lambda^2}. \tag{M1.2}
$$

The right-hand side is positive for $0<\eta<2$ and largest at η = 1, which speaks for the step that mean shift takes. The argument is that of the EM algorithm ([Carreira-Perpiñán, 2007](https://doi.org/10.1109/TPAMI.2007.1057)).

**Predict.** Plot the gain against η, divided by $|m|^2/2\lambda^2$, for many random points. All curves must stay above the parabola $\eta(2-\eta)$. Which density would lie *on* it?
"""


# %%
def gain(mixture, x, bandwidth, eta):
    """(log p_λ(x + ηm) − log p_λ(x)) / (|m|²/2λ²), (len(eta), n)."""
    m = mixture.denoise(x, bandwidth) - x
    there = mixture.log_prob(x + eta[:, None, None] * m, bandwidth)
    return (there - mixture.log_prob(x, bandwidth)) / (
        m.square().sum(-1) / (2 * bandwidth**2)
    )


tree = fractal()
eta = torch.linspace(0, 3, 121, dtype=torch.float64)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.3), sharey=True)
for ax, mixture, λ, title in (
    (axes[0], tree, 0.1, "the fractal"),
    (axes[1], estimate, 0.004, "300 data points"),
):
    x = mixture.sample(60, sigma=2 * λ, generator=generator)
    curves = gain(mixture, x, λ, eta)
    ax.plot(eta, curves, color=figures.SKY, linestyle="-", linewidth=0.7)
    ax.plot(
        eta,
        eta * (2 - eta),
        color=figures.BLACK,
        linestyle="--",
        label="bound η(2 − η)",
    )
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle="-")
    ax.axvspan(2, 3, color=figures.ORANGE, alpha=0.12, linewidth=0)
    ax.set(
        title=f"{title}, λ = {λ}", xlabel="step length η", ylim=(-3.2, 4.2), xlim=(0, 3)
    )
axes[0].set_ylabel("gain of log $p_\\lambda$ / (|m|² / 2λ²)")
axes[1].text(2.05, 3.6, "no promise", color=figures.RED)
axes[0].legend(loc="lower left")
figures.show(
    fig,
    alt="Gain of log density against step length for 60 random points, two panels. "
    "All curves lie above the dashed parabola η(2−η), which turns negative at 2. On "
    "the fractal they lie well above it; on data with a small bandwidth many lie on "
    "it.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

A density concentrated in a single point: there $m$ leads straight to it, and the gain *is* the parabola. A training set seen with a small bandwidth looks like that from most places.

</details>

So the bound cannot be improved for all densities at once. On the fractal most curves are still rising at η = 1; longer steps would pay, and exercise 1.3 asks how long. Beyond 2 the promise ends. Some curves have already dropped below zero: a step that goes down.

The check draws random mixtures, not only ours.
"""

# %% tags=["check"]
slack = []
for trial in range(pick(smoke=20, laptop=200)):
    K = 1 + trial % 7
    root = torch.randn(K, 3, 3, dtype=torch.float64, generator=generator)
    mixture = GaussianMixture(
        torch.rand(K, generator=generator) + 0.01,
        root[..., 0],
        root @ root.mT + 1e-4 * torch.eye(3),
    )
    x = 2 * torch.randn(200, 3, dtype=torch.float64, generator=generator)
    η = torch.tensor([1.0, 1.9], dtype=torch.float64)
    slack.append(
        (gain(mixture, x, 0.05 + trial % 10 / 5, η) - (η * (2 - η))[:, None]).min()
    )
print(
    f"smallest gain minus bound over {len(slack)} random mixtures: {min(slack):.1e}, "
    "at η = 1 and 1.9"
)
assert min(slack) > -1e-9

point = GaussianMixture(torch.ones(1), torch.zeros(1, 3), 1e-12 * torch.eye(3)[None])
exact = (gain(point, x, 1.0, eta) - (eta * (2 - eta))[:, None]).abs().max()
print(f"a single point attains it: largest difference {exact:.1e}")
assert exact < 1e-9

# %% [markdown]
r"""
## Does it climb *p*, too?

We climb $p_\lambda$, but we care about $p$. The paper says that $m$ aligns with $\nabla p$ as $\lambda\to0$, "when such gradient exists". How fast? If $p$ is smooth and positive, expand $p_\lambda = p + \tfrac{\lambda^2}{2}\Delta p + O(\lambda^4)$. The directions of
$\nabla p_\lambda$ and $\nabla p$ then differ by an angle $O(\lambda^2)$, and

$$
1 - \cos\angle(m, \nabla p) = O(\lambda^4). \tag{M1.3}
$$

**Predict.** That concerns a density that we *know*. If we only have samples of it, is a smaller bandwidth still better?
"""


# %%
def misalignment(denoise, mixture, x, bandwidth):
    """The median of 1 − cos(m, ∇p), by the angle: near 1 a cosine loses its digits."""
    a, b = denoise(x, bandwidth) - x, mixture.score(x)
    angle = torch.atan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(-1))
    return float((2 * (angle / 2).sin().square()).median())


wide = torch.tensor(
    [[[0.2, 0.1], [0.1, 0.1]], [[0.1, -0.05], [-0.05, 0.2]], [[0.05, 0.0], [0.0, 0.3]]]
)
hills = GaussianMixture(
    torch.ones(3), torch.tensor([[0.6, 0.0], [-0.5, 0.4], [-0.1, -0.6]]), wide
)
known = {"three hills": hills, "pinwheel": truth, "fractal": tree}
bandwidths = torch.logspace(
    -3, -0.4, pick(smoke=7, laptop=19), dtype=torch.float64
).tolist()
curves = {}
for name, mixture in tqdm(known.items(), leave=False):
    x = mixture.sample(500, generator=generator)
    curves[name] = [misalignment(mixture.denoise, mixture, x, λ) for λ in bandwidths]
x = truth.sample(500, generator=generator)
for M in pick(smoke=(300, 3000), laptop=(1000, 10_000, 100_000)):
    denoise = IdealDenoiser(truth.sample(M, generator=generator))
    curves[f"{M:,} samples"] = [misalignment(denoise, truth, x, λ) for λ in bandwidths]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), sharex=True)
for i, (name, curve) in enumerate(curves.items()):
    i, ax = (i, axes[0]) if name in known else (i - len(known), axes[1])
    style = {
        "color": figures.PALETTE[i],
        "linestyle": figures.LINES[i],
        "marker": figures.MARKERS[i],
    }
    ax.loglog(bandwidths, curve, markersize=3.5, label=name, **style)
axes[0].loglog(
    [2e-3, 2e-2],
    [2e-11, 2e-7],
    color="0.5",
    linestyle="-",
    linewidth=1,
    label="slope 4",
)
axes[0].set(
    title="$p$ known",
    ylabel="median of 1 − cos(m, ∇p)",
    xlabel="bandwidth λ",
    ylim=(1e-12, 1e4),
)
axes[1].set(
    title="pinwheel, known through samples", xlabel="bandwidth λ", ylim=(1e-5, 2)
)
for ax, place in zip(axes, ("upper left", "lower left"), strict=True):
    ax.legend(loc=place, fontsize=9)
figures.show(
    fig,
    alt="Misalignment of the mean-shift vector with the gradient of p, against "
    "bandwidth. Left, three known densities: it falls with slope 4 on log axes. "
    "Right, the pinwheel known through samples: U-shaped, the minimum lower and "
    "further left for more samples.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

No. With $p$ known, smaller is better, with the fourth power as soon as λ is smaller than what the density has to show: at .1 for the hills, below .01 for the thin branches of the fractal. With samples the curve turns.

</details>

A data set is no smooth density: it is a sum of points, without a gradient. Below the spacing of the data $m$ points to the nearest datum, whatever $p$ does. The best bandwidth balances the bias $O(\lambda^4)$ against the noise of the average, and moves left only slowly as data are added. Keep the right panel in mind: a diffusion model is trained on samples, and claims to know the left one.

<details>
<summary>Aside: where the left panel bends twice</summary>

The pinwheel bends once more near .005: it is made of components .012 apart, and their faint ripple is a detail, too. Where a density has an edge or is flat, there is no direction to align with at all.

</details>
"""

# %% tags=["check"]
x = hills.sample(2000, generator=generator)
coarse, fine = (
    misalignment(hills.denoise, hills, x, 0.02),
    misalignment(hills.denoise, hills, x, 0.005),
)
order = np.log(coarse / fine) / np.log(4)
print(
    f"order of 1 − cos on the hills: {order:.3f}; predicted 4, error "
    f"{abs(order - 4):.1e}"
)
assert abs(order - 4) < 0.05

# %% [markdown]
r"""
## Where it ends: modes, and saddles

By (M1.1), $m = 0$ exactly at the stationary points of $p_\lambda$. Those are its modes, but also its saddles and minima.

**Predict.** Eight Gaussians stand on a ring. A point starts on the line that separates two of them. Where does it end? And if the start is off by a millionth?
"""

# %% tags=["check"]
λ = 0.2
ring = eight_gaussians()
angle = torch.tensor(torch.pi / 8, dtype=torch.float64)
ray = torch.stack([angle.cos(), angle.sin()])  # between two of the eight
side = torch.stack([-angle.sin(), angle.cos()])

saddle = 0.5 * ray
for _ in range(500):  # by symmetry no step leaves the ray; rounding would
    saddle = (ring.denoise(saddle, λ) @ ray) * ray
pull = (ring.denoise(saddle, λ) - saddle).norm()
J = torch.autograd.functional.jacobian(lambda x: ring.denoise(x, λ), saddle)
largest = torch.linalg.eigvalsh(J)[-1]
escape = torch.stack(climb(ring.denoise, saddle + 1e-6 * side, λ, 60))
growth = (escape[6] @ side) / (escape[5] @ side)
print(f"on the line: |m| = {pull:.1e} at radius {saddle @ ray:.3f}")
print(f"aside: the distance grows by {growth:.6f} a step; ∂D/∂x has {largest:.6f}")
assert pull < 1e-14
assert abs(growth - largest) < 1e-6

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), width_ratios=[1, 1.3])
left.set(title=f"λ = {λ}", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
left.set_axis_off()
figures.density(left, ring, λ)
on_the_line = climb(ring.denoise, 0.2 * ray, λ, 15)
figures.paths(left, [x[None] for x in on_the_line], figures.ORANGE, linewidth=1.5)
figures.paths(left, [x[None] for x in escape], figures.RED, linewidth=1.5)
right.semilogy(escape @ side, color=figures.RED, linestyle="-", label="aside")
law = 1e-6 * float(largest) ** np.arange(20)
right.plot(
    law,
    color=figures.BLACK,
    linestyle=":",
    label="a millionth times the eigenvalue each step",
)
right.set(title="distance from the line", xlabel="iteration", ylim=(3e-7, 30))
right.legend(fontsize=9)
figures.show(
    fig,
    alt="Left: eight Gaussians on a ring, smoothed. A path on the line between two of "
    "them ends at a saddle; one that starts a millionth aside goes from there to a "
    "mode. Right: the distance from the line grows by a fixed factor a step, as "
    "predicted, then stays.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

On the line it ends at the saddle, a fixed point as good as any. A millionth aside, it escapes to one of the two modes.

</details>

In practice nothing stays for ever, but a climb that passes near a saddle or a minimum dawdles, as the waiting curve above did in the centre of the pinwheel, and a stopping rule that only looks at $|m|$ can mistake it for a mode.

### Modes of $p_\lambda$, modes of $p$

Where are the modes when λ changes? One dimension shows all of it at once: stationary points are where the score vanishes, so we draw its zero set over position and bandwidth, and put the ends of many climbs on top.

**Predict.** Follow one mode of $p$ as λ grows. It can move, and it can vanish. When it vanishes, is it alone?
"""

# %%
places = torch.tensor([[-2.2], [-1.5], [-0.3], [0.25], [0.8], [2.4]])
line = GaussianMixture(
    torch.tensor([25.0, 10, 20, 8, 17, 20]), places, torch.full((6, 1, 1), 0.15**2)
)
position = torch.linspace(-3.2, 3.2, 400, dtype=torch.float64)[:, None]
levels = torch.logspace(-2, 0.5, pick(smoke=40, laptop=160)).tolist()
slope = torch.stack(
    [line.score(position, λ)[:, 0] for λ in levels]
).numpy()  # (levels, 400)
height = torch.stack([line.log_prob(position, λ) for λ in levels])
rungs = levels[:: len(levels) // 20]
ends = [
    climb(line.denoise, position[::10], λ, pick(smoke=200, laptop=2000))[-1]
    for λ in rungs
]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(7.2, 3.8))
x, curvature = position[1:, 0], np.diff(slope, axis=1)
relative = (height - height.amax(1, keepdim=True)).exp().sqrt()
ax.pcolormesh(
    position[:, 0], levels, relative, cmap=figures.INK, vmax=1.6, rasterized=True
)
for kept, color_, style in (
    (curvature < 0, figures.RED, "-"),
    (curvature > 0, figures.BLACK, ":"),
):
    ax.contour(
        x,
        levels,
        np.ma.masked_where(~kept, slope[:, 1:]),
        [0],
        colors=color_,
        linestyles=style,
    )
for λ, end in zip(rungs, ends, strict=True):
    ax.plot(
        end,
        np.full(len(end), λ),
        "o",
        color=figures.ORANGE,
        markersize=4,
        markeredgecolor="white",
    )
ax.plot([], [], color=figures.RED, linestyle="-", label="modes of $p_\\lambda$")
ax.plot([], [], color=figures.BLACK, linestyle=":", label="minima")
ax.plot([], [], "o", color=figures.ORANGE, label="ends of mean shift")
ax.set(yscale="log", xlabel="x", ylabel="bandwidth λ", ylim=(levels[0], levels[-1]))
ax.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
figures.show(
    fig,
    alt="Bifurcation picture: position against bandwidth for six Gaussians on a line. "
    "Six vertical branches of modes at small bandwidth drift and end, each meeting a "
    "dotted branch of minima, until one is left. Ends of mean shift lie on the "
    "branches of modes.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Never: it meets a minimum (in more dimensions, a saddle), and both are gone.

</details>

What remains has moved, and the last mode sits near the mean of everything, possibly where $p$ itself is nearly zero. This is the reason to *anneal*: start with a large λ, where the climb sees far, and lower it, so that the answer is a mode of $p$ and not of its blur. Chapter 06 builds on that.

<details>
<summary>Aside: does smoothing ever make modes?</summary>

In one dimension the number of modes never increases with λ ([Silverman, 1981](https://doi.org/10.1111/j.2517-6161.1981.tb01155.x)); in two or more it can, though rarely ([Carreira-Perpiñán and Williams, 2003](https://doi.org/10.1007/3-540-44935-3_44)).

</details>

### Exercise 1.2 · When two become one (★★, 15 min)

Two equal Gaussians of standard deviation $s$ stand at $-a$ and $+a$ on a line, $s<a$. At which bandwidth do the modes of $p_\lambda$ merge? Write the formula; `a` and `s` are plain numbers. By symmetry the origin is always stationary; ask when it turns from a minimum into a mode.
"""


# %% tags=["exercise"]
def merging_bandwidth(a, s):
    raise NotImplementedError  # your formula


checks.merging_bandwidth(merging_bandwidth)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def merging_bandwidth(a, s):
    # Smoothing makes each variance v = s² + λ². At 0 the second derivative of
    # N(x; ±a, v) is N · (a² − v)/v²: it changes sign at v = a².
    return (a**2 - s**2) ** 0.5


checks.merging_bandwidth(merging_bandwidth)

# %% [markdown]
r"""
## How fast?

Near a mode $x^*$ the iteration is linear: $x_{k+1}-x^* \approx J\,(x_k-x^*)$ with $J = \partial D/\partial x$ at $x^*$. Differentiating the quotient in Eq. 5 gives a second form of this matrix,

$$
J = \frac{\partial D}{\partial x} = I + \lambda^2\,\nabla^2\log p_\lambda = \frac{\operatorname{Cov}_q[y]}{\lambda^2}, \tag{M1.4}
$$

the covariance of what is averaged, in units of the kernel's. So the eigenvalues of $J$ are never negative, at a mode they are at most 1, and the largest is the factor by which the error shrinks in each step. At the saddle above one of them was 2.18, the factor of the escape.

**Predict.** Does a smaller bandwidth converge faster or slower? Think of a density and of a data set separately.
"""


# %%
def jacobian(denoise, x, bandwidth):
    return torch.autograd.functional.jacobian(
        lambda x: denoise(x[None], bandwidth)[0], x
    )


def rate(denoise, x, bandwidth):
    return float(torch.linalg.eigvalsh(jacobian(denoise, x, bandwidth))[-1])


def settle(denoise, x, bandwidth, limit=2000):
    """Climbs until no point moves by more than λ/10,000; who rests is left alone."""
    x, moving = x.clone(), torch.arange(len(x))
    for _ in range(limit):
        there = denoise(x[moving], bandwidth)
        step = (there - x[moving]).norm(dim=-1)
        x[moving] = there
        moving = moving[step > 1e-4 * bandwidth]
        if len(moving) == 0:
            break
    return x


start = torch.tensor([[0.9, 0.3]], dtype=torch.float64)
data_denoiser = IdealDenoiser(sampled)
sweep = np.geomspace(0.01, 0.5, pick(smoke=6, laptop=24))
rates = {}
for name, denoise in (("density", truth.denoise), ("300 samples", data_denoiser)):
    rates[name] = [rate(denoise, settle(denoise, start, λ)[0], λ) for λ in sweep]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.3))
for λ, level, aside in ((0.04, 1e-1, 5), (0.08, 1e-4, 5), (0.16, 1e-9, -64)):
    track = torch.cat(climb(truth.denoise, start, λ, pick(smoke=400, laptop=2000)))
    error, ρ = (track - track[-1]).norm(dim=-1), rate(truth.denoise, track[-1], λ)
    k = int((error < level).nonzero()[0])
    (drawn,) = left.semilogy(error[:120])
    predicted = float(error[k]) * ρ ** np.arange(120 - k)
    left.semilogy(
        range(k, 120), predicted, color=figures.BLACK, linestyle=":", linewidth=1
    )
    left.annotate(
        f"λ = {λ}\nρ = {ρ:.3f}",
        (k, level),
        (aside, 3),
        textcoords="offset points",
        color=drawn.get_color(),
    )
for (name, curve), marker in zip(rates.items(), figures.MARKERS, strict=False):
    right.semilogx(sweep, curve, label=name, marker=marker, markersize=4)
left.set(
    title="distance to the mode; ρᵏ dotted",
    xlabel="k",
    ylabel="|x − x*|",
    ylim=(1e-12, 30),
    xlim=(0, 120),
)
right.set(
    title="factor per step",
    xlabel="bandwidth λ",
    ylabel="ρ, largest eigenvalue of J",
    ylim=(0, 1.03),
)
right.legend(loc="lower right")
figures.show(
    fig,
    alt="Left: distance to the mode against iteration on a log axis for three "
    "bandwidths, straight lines that match the dotted predictions. Right: factor per "
    "step against bandwidth; for the density it nears 1 as the bandwidth falls, for "
    "samples it drops to 0; both peak near 0.24.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

For a density, slower: $q$ becomes as narrow as the kernel, $\operatorname{Cov}_q \to \lambda^2 I$, and ρ → 1. For data, faster: a small bandwidth holds a single datum, the covariance is zero, and one step arrives, at a worthless answer.

</details>

Both curves peak near λ = .24, where the five summits of the pinwheel merge: at a bifurcation the landscape is flat in one direction, an eigenvalue of $J$ is 1, and mean shift stalls. The samples have many small mergers of their own, hence their ragged curve.
"""

# %% tags=["check"]
λ = 0.08
track = torch.cat(climb(truth.denoise, start, λ, 2000))
mode = track[-1]
J = jacobian(truth.denoise, mode, λ)
q = truth.product(mode, λ)  # p(y) N(y; x, λ²), again a mixture
spread = q.means - q.weights @ q.means
covariance = (
    q.weights[:, None, None] * (q.covariances + spread[:, :, None] * spread[:, None])
).sum(0)

error = (track - mode).norm(dim=-1)
k = int((error < 1e-5).nonzero()[0])
measured, predicted = (
    float((error[k + 20] / error[k]) ** (1 / 20)),
    float(torch.linalg.eigvalsh(J)[-1]),
)
print(f"J against Cov_q/λ²: largest error {(J - covariance / λ**2).abs().max():.1e}")
print(
    f"shrinks by {measured:.6f} a step, predicted {predicted:.6f}, error "
    f"{abs(measured - predicted):.1e}"
)
assert (J - covariance / λ**2).abs().max() < 1e-10
assert abs(measured - predicted) < 1e-4

# %% [markdown]
r"""
### Exercise 1.3 · The best step at a mode (★★★, 20 min)

With a step length η the error is multiplied by $I - \eta\,(I - J)$. Given the symmetric matrix `J` (d, d), float64, all of its eigenvalues in [0, 1), return the η for which the worst direction shrinks fastest. The answer exceeds 1: mean shift is cautious.
"""


# %% tags=["exercise"]
def best_step(J):
    raise NotImplementedError  # your code


checks.best_step(best_step)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def best_step(J):
    # The factors are 1 − η(1 − μ). The slowest and the fastest direction are worst; at
    # the best η they are equal and opposite.
    μ = torch.linalg.eigvalsh(J)
    return 2 / (2 - μ[0] - μ[-1])


checks.best_step(best_step)
print(f"at the mode above: η = {best_step(J):.3f}")

# %% [markdown]
r"""
## Break it: a step that is too long

(M1.2) promises nothing beyond η = 2. Near a mode, exercise 1.3 says when it really breaks: the fastest direction, with the smallest eigenvalue $\mu_\text{min}$ of $J$, shrinks while $|1-\eta(1-\mu_\text{min})|<1$, that is for

$$
\eta < \frac{2}{1-\mu_\text{min}}. \tag{M1.5}
$$

**Predict.** Data, or density: which one forgives η = 2.1?
"""

# %% tags=["break-it"]
cases = {
    "300 samples, λ = 0.02": (data_denoiser, 0.02),
    "density, λ = 0.08": (truth.denoise, 0.08),
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
for ax, (title, (denoise, λ)) in zip(axes, cases.items(), strict=True):
    mode = climb(denoise, start, λ, 2000)[-1]
    edge = float(2 / (1 - torch.linalg.eigvalsh(jacobian(denoise, mode[0], λ))[0]))
    for η, marker in zip(
        (1.0, 1.9, 0.97 * edge, 1.03 * edge), figures.MARKERS, strict=False
    ):
        states = climb(denoise, mode + 1e-3 * λ * torch.tensor([0.6, 0.8]), λ, 240, η)
        distance = [(x - mode).norm() / λ for x in states]
        ax.semilogy(
            distance, label=f"η = {η:.2f}", marker=marker, markevery=30, markersize=4
        )
    ax.axhline(1, color="0.6", linewidth=0.8, linestyle="-")
    ax.set(title=f"{title}: edge at {edge:.3f}", xlabel="iteration", ylim=(1e-9, 3e4))
    ax.legend(loc="upper right", ncols=2, fontsize=8)
axes[0].set_ylabel("distance to the mode / λ")
figures.show(
    fig,
    alt="Distance to a mode against iteration for four step lengths, two panels. "
    "Started a thousandth of a bandwidth away, steps below the predicted edge shrink "
    "the distance; above it the distance grows until it is one to two bandwidths and "
    "stays there.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

The density: its edge lies a little beyond 2.1. On data the edge *is* 2, since $\mu_\text{min}\approx0$.

</details>

Above the edge each step overshoots by more than it corrects, until the point jumps for ever between two places, a bandwidth or two to either side of the mode.

## Break it: a bandwidth that is too small

Each of the 300 samples climbs its own kernel density estimate. Ends closer than λ/4 count as one mode.

**Predict.** How many modes at λ = .005? Where is the answer five, and how wide is that range?
"""


# %%
def group(ends, radius):
    """Labels (n,), and one representative a group: ends within `radius` of it."""
    labels, modes = torch.full((len(ends),), -1), []
    while (labels < 0).any():
        first = ends[(labels < 0).nonzero()[0, 0]]
        labels[(labels < 0) & ((ends - first).norm(dim=-1) < radius)] = len(modes)
        modes.append(first)
    return labels, torch.stack(modes)


# %% tags=["break-it"]
sweep = np.geomspace(0.003, 0.6, pick(smoke=6, laptop=25))
counts = [len(group(settle(data_denoiser, sampled, λ), λ / 4)[1]) for λ in sweep]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.5), width_ratios=[1, 1, 1.3])
for ax, λ in zip(axes, (0.015, 0.13), strict=False):
    ends = settle(data_denoiser, sampled, λ)
    ways = torch.stack([sampled, ends])  # (2, 300, 2)
    ax.plot(ways[..., 0], ways[..., 1], color=figures.SKY, linewidth=0.7, linestyle="-")
    figures.points(ax, sampled, "0.4", size=3)
    modes = group(ends, λ / 4)[1]
    figures.points(ax, modes, figures.RED, size=14 if len(modes) > 9 else 45, alpha=1)
    ax.set(title=f"λ = {λ}: {len(modes)} modes", xlim=(-0.9, 0.9), ylim=(-0.9, 0.9))
    ax.set(aspect="equal")
    ax.set_axis_off()
axes[2].loglog(sweep, counts, marker="o", markersize=4)
axes[2].axhline(5, color="0.5", linestyle=":", linewidth=1)
axes[2].text(0.003, 5.6, "five", color="0.4", fontsize=9)
axes[2].set(title="modes of the estimate", xlabel="bandwidth λ")
figures.show(
    fig,
    alt="300 pinwheel samples, each joined to the mode to which it climbs. Left, "
    "bandwidth 0.015: dozens of modes, hardly a line. Middle, 0.13: five, one a vane. "
    f"Right: number of modes against bandwidth, from {counts[0]} at 0.003 to "
    f"{counts[-1]} at 0.6.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

At .005 nearly every datum is a mode and hardly moves. The plateau at five reaches from .1 to about .16.

</details>

At the small end the method has learned the training set by heart. Chapter 02 meets the same failure under the name *memorisation*. A plateau is the usual sign of a bandwidth that sees structure; nobody guarantees that there is one.

## The colours of a photograph

A real data set: the pixels of a photograph, as points in the colour space CIELAB, where distance is roughly how different two colours look. The picture is *Coffee* by Rachel Michetti, released under CC0, one of those that scikit-image carries in its package ([van der Walt et al., 2014](https://doi.org/10.7717/peerj.453)). Each pixel climbs the density of all pixels, and pixels that end at the same mode get its colour. Nobody says how many colours there are.

**Predict.** How many would you count?
"""

# %%
width = pick(smoke=18, laptop=66)
photo = transform.resize(data.coffee(), (2 * width // 3, width), anti_aliasing=True)
pixels = torch.from_numpy(color.rgb2lab(photo)).reshape(
    -1, 3
)  # (pixels, 3): lightness, green to red, blue to yellow

λ = 5.0
basins, modes = group(settle(IdealDenoiser(pixels), pixels, λ), λ / 4)
print(f"{len(pixels)} pixels, {len(modes)} modes")
for mode, count in zip(modes, basins.bincount(), strict=True):
    print(
        f"L* = {mode[0]:5.1f}, a* = {mode[1]:5.1f}, b* = {mode[2]:5.1f}: "
        f"{count / len(pixels):6.1%} of the pixels"
    )


# %%
def painted(labels, centres):
    """The photograph with each pixel in the colour of its centre."""
    return color.lab2rgb(
        np.asarray(centres)[np.asarray(labels)].reshape(photo.shape)
    ).clip(0, 1)


# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, middle, right) = plt.subplots(
    1, 3, figsize=(7.2, 2.3), width_ratios=[1.5, 1.1, 1.5]
)
left.imshow(photo, interpolation="nearest")
right.imshow(painted(basins, modes), interpolation="nearest")
middle.scatter(pixels[:, 2], pixels[:, 0], s=3, c=photo.reshape(-1, 3), linewidths=0)
middle.scatter(
    modes[:, 2],
    modes[:, 0],
    s=70,
    c=color.lab2rgb(modes.numpy()),
    edgecolors="white",
    linewidths=2.5,
)
middle.scatter(
    modes[:, 2],
    modes[:, 0],
    s=110,
    facecolors="none",
    edgecolors=figures.BLACK,
    linewidths=1,
)
left.set_title(f"{len(pixels)} pixels")
right.set_title(f"{len(modes)} colours, λ = {λ:g}")
left.set_axis_off()
right.set_axis_off()
middle.set(title="in colour space", xlabel="b*: blue to yellow", ylabel="L*: lightness")
figures.show(
    fig,
    alt="A cup of coffee on a wooden table, its pixels as points in colour space with "
    f"{len(modes)} modes marked as large discs, and the photograph again with every "
    "pixel painted in the colour of the mode to which mean shift carried it.",
)

# %% [markdown]
r"""
<details>
<summary>Answer</summary>

Six: shadow, dark red, wood, saucer, coffee and cup.

</details>

The inside of the cup has become wood, though. Its shaded white lies on a bridge of intermediate colours that leads down to the brown summit; a basin follows the bridge, not our idea of a cup.

Scikit-learn's `MeanShift` ([Pedregosa et al., 2011](https://jmlr.org/papers/v12/pedregosa11a.html)) gets the same pixels and as much smoothing. The adjusted Rand index compares two labellings: 1 if equal, 0 if no better than chance.
"""

# %%
theirs = MeanShift(bandwidth=7**0.5 * λ).fit(pixels.numpy())
index = adjusted_rand_score(basins, theirs.labels_)
print(
    f"scikit-learn: {len(theirs.cluster_centers_)} colours, adjusted Rand index "
    f"{index:.2f}"
)

# %% [markdown]
r"""
As many colours, on other pixels. "Mean shift" names a family.

<details>
<summary>Aside: next to scikit-learn, for another afternoon</summary>

Its kernel is **flat**: the plain average of all points within a radius $h$. That, too, is a gradient step, on the density estimate with Epanechnikov's kernel $\propto 1-|u|^2/h^2$ ([Cheng, 1995](https://doi.org/10.1109/34.400568)), whose variance is $h^2/(d+4)$ in each direction: hence $h=\sqrt7\,\lambda$ in three dimensions. Ends are merged **within the radius** $h$, the densest first. A pixel gets the label of the **nearest centre**, not of the mode to which it climbed. Rebuild the three with `settle` and `group`, and swap them in one at a time. On this photograph at λ = 5 the labels cost us most agreement, the kernel came next, and all three together gave scikit-learn's answer up to a pixel or two. Is that so at λ = 6?

</details>

### Open task 1 · Annealing by hand

Figure 1 (d) of the paper shows points that reached the fractal. Reproduce it with `climb` alone: a lattice of starts, one step at each of a falling sequence of bandwidths. Measure two things, the mean of $-\log p$ at the ends (lower is better) and the share of the tree's components that have an end within .02. A slow descent from λ = .3 wins the first and loses the second. Find the schedule that you would defend, with numbers. Chapter 06 has the paper's own schedule to compare with.

## Take-aways

- Averaging under a Gaussian is a gradient step: $m = D(x;\lambda)-x = \lambda^2\nabla\log p_\lambda(x)$, exactly, for densities and for data.
- Every step climbs $\log p_\lambda$ by at least $\eta(2-\eta)|m|^2/2\lambda^2$. No line search, no step length to tune, and nothing promised beyond η = 2.
- It ends at the stationary points of $p_\lambda$, not of $p$. Small λ is faithful and slow if the density is known, and worthless if only samples are.
- The speed is the largest eigenvalue of $\partial D/\partial x = \operatorname{Cov}_q/\lambda^2$.

## What's next

Chapter 02 takes the second reading of Eq. 5 seriously: the step is a *denoiser*, the one a perfect diffusion model would learn from the data, and a sampler is made of nothing else. The references of all chapters are on the page *References*.
"""
