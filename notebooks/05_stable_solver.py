# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
r"""
# Solve a stiff product flow

You will build the paper's stable solver, find the step at which its unstable sibling explodes before running it, and end with one plot that puts every sampler of the product density on the same axes: error against denoiser calls.

*Hardware:* any laptop. *Time:* about two and a half minutes of computing on two CPU cores, two hours of reading and exercises. *Before this:* chapters 02 and 04.
"""

# %% [markdown]
r"""
## What you'll learn

- measure stiffness along a trajectory, and tell a stiff problem from a stiff formulation;
- predict the step at which Euler's method turns round, and find it there;
- derive the exponential step (Eq. 14 and 15), measure its order, and raise it without a single extra call;
- say what the paper's $\Delta t$ can and cannot mean;
- choose a solver, a kernel interval and a centre by measured error, and say what each does to the spread of the samples.
"""

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import solve_ivp
from tqdm.auto import tqdm

from msd_teach import counted, fractal, invert, karras_sigmas, product_denoiser, sample_product
from msd_teach.lesson import checks, figures
from msd_teach.lesson.budget import NAME, pick
from msd_teach.lesson.explore import explore
from msd_teach.runs import intervals
from msd_teach.sampling import solver_step, vp_sigma

figures.use_style()
p = fractal()
SIGMA_MIN, SIGMA_MAX = 0.002, 5.0

# %% [markdown]
r"""
## Two forces in one flow

Chapter 04 left us with two ways to sample $q(y \mid x) \propto p(y)\, \mathcal N(y; x, \lambda^2 I)$. One hands the sampler an exact denoiser of $q$. The other, the paper's, adds the clean kernel's score to the noisy score of the model, which turns the flow of chapter 02 into

$$\frac{\mathrm dz}{\mathrm d\sigma} = \underbrace{\frac{z - D(z; \sigma)}{\sigma}}_{\text{the model}} + \underbrace{\frac{\sigma\,(z - x)}{\lambda^2}}_{\text{the kernel}}. \tag{M4.6}$$

(Eq. 9 in the ODE, with sign and factor corrected, as derived there.) We call it the *sum flow*. Chapter 04 showed where it ends; here we ask what it costs to get there.

How fast do the two forces act? Take a small deviation $\delta z$ between neighbouring solutions, and $\ln \sigma$ as time, the natural unit of a diffusion sampler. The model's Jacobian is the posterior covariance, as in (M2.9), so

$$\frac{\mathrm d\, \delta z}{\mathrm d \ln \sigma} = \Bigl(I - \frac{\operatorname{Cov}[y \mid z]}{\sigma^2} + \frac{\sigma^2}{\lambda^2} I\Bigr)\, \delta z. \tag{M5.1}$$

**Predict.** A covariance is never negative, so the model's rates are at most 1. How large does the kernel's rate get for $\lambda = 0.1$ and $\sigma_{\max} = 5$? At which end of the trajectory is the trouble? And what would the same measurement give for the exact denoiser of $q$, whose samples are just as narrow?
"""


# %%
def jacobian(field, z):
    """∂field/∂z of a field that treats the points z (n, d) one by one, (n, d, d)."""
    z = z.clone().requires_grad_()
    v = field(z)
    rows = [torch.autograd.grad(v[:, i].sum(), z, retain_graph=True)[0] for i in range(z.shape[1])]
    return torch.stack(rows, dim=1)


def rates(denoise, extra, path, sigmas):
    """Eigenvalues (levels, d) of the Jacobian of z − D(z; σ) + extra(z, σ), the flow in ln σ, along a path."""
    return torch.linalg.eigvalsh(jacobian(lambda z: z - denoise(z, sigmas) + extra(z, sigmas), path))


bandwidth = 0.1
generator = torch.Generator().manual_seed(0)
x = p.sample(1, bandwidth, generator)[0]
grid = karras_sigmas(pick(smoke=60, laptop=400), SIGMA_MIN, SIGMA_MAX)
levels = grid[:-1, None]

summed = torch.stack(list(sample_product(p.denoise, x, bandwidth, grid, "exponential", generator=generator)))[:-1]
exact = torch.stack(list(sample_product(p.denoise, x, bandwidth, grid, "exact", generator=generator)))[:-1]
sum_rates = rates(p.denoise, lambda z, s: s**2 / bandwidth**2 * (z - x), summed, levels)
exact_rates = rates(product_denoiser(p.denoise, x, bandwidth), lambda z, s: 0 * z, exact, levels)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.3), width_ratios=(1.5, 1), sharex=True)
left.loglog(levels, sum_rates[:, 1], color=figures.RED, linestyle="-", label="sum flow")
left.loglog(levels, levels**2 / bandwidth**2, color=figures.BLACK, linestyle=":", label="σ²/λ²")
left.loglog(levels, exact_rates[:, 1].clamp(min=1e-3), color=figures.BLUE, linestyle="--", label="exact product flow")
left.axvline(bandwidth, color="0.75", linestyle="-", linewidth=0.8)
left.text(bandwidth * 0.9, 1200, "σ = λ", color="0.4", ha="left", fontsize=9)
left.set(title="fastest rate in ln σ", xlabel="noise level σ (falling)", ylim=(0.05, 6e3), xlim=(SIGMA_MAX, SIGMA_MIN))
left.legend(loc="lower left", fontsize=9)
right.semilogx(levels, exact_rates[:, 1], color=figures.BLUE, linestyle="--", label="largest")
right.semilogx(levels, exact_rates[:, 0], color=figures.SKY, linestyle="-.", label="smallest")
right.axhline(1, color="0.75", linestyle="-", linewidth=0.8)
right.set(title="exact flow: both rates", xlabel="noise level σ (falling)")
right.legend(fontsize=9)
figures.show(
    fig,
    alt=f"Rates of change in ln σ along one trajectory on the fractal, λ = 0.1. Left, the sum flow's fastest rate is "
    f"{sum_rates.max():.0f} at σ = 5 and falls as σ²/λ²; the exact product flow stays below 1. Right, both rates of the exact flow.",
)

# %% tags=["check"]
covariance = []
for z, sigma in zip(summed[::20], grid[:-1][::20].tolist(), strict=True):
    q = p.product(z, sigma)  # p(y | z) is a product with the kernel N(y; z, σ²), in closed form
    deviation = q.means - q.weights @ q.means
    moments = q.covariances + deviation[:, :, None] * deviation[:, None]
    covariance.append((q.weights[:, None, None] * moments).sum(0))
s2 = levels[::20, :, None] ** 2
predicted = torch.linalg.eigvalsh((1 + s2 / bandwidth**2) * torch.eye(2) - torch.stack(covariance) / s2)
error = ((sum_rates[::20] - predicted).abs() / (1 + s2[:, 0] / bandwidth**2)).max()
ratio = (sum_rates[:, 1] / exact_rates[:, 1].clamp(min=1)).max()
print(f"(M5.1) with the closed-form covariance against automatic differentiation: max relative error {error:.1e}")
print(f"largest rate: sum flow {sum_rates.max():.0f}, exact flow {exact_rates.max():.4f}, ratio {ratio:.0f}")
assert error < 1e-8
assert exact_rates.max() <= 1 + 1e-9

# %% [markdown]
r"""
The trouble is at the *noisy* end, where one would think nothing of importance happens. There the kernel pulls a point that sits $5$ away with a force made for distances of $0.1$, thousands of times faster than the model moves. That is what **stiff** means ([Hairer and Wanner, 1996](https://doi.org/10.1007/978-3-642-05221-7)): the solution we want changes slowly, a part that has long died out changes fast, and an explicit method has to follow the part that died.

The dashed line is the same density sampled through its exact denoiser. It is the flow of *some* density's denoiser, so (M2.9) holds for it and no rate exceeds 1, whatever $\lambda$ is. The problem is not stiff. Its formulation as a sum is.

## Break it: an explosion, by appointment

Euler's method takes one straight step from $\sigma_i$ to $\sigma_{i+1}$. Put the kernel's term into it and $z - x$ is multiplied by

$$1 - g_i, \qquad g_i = \frac{\sigma_i\,(\sigma_i - \sigma_{i+1})}{\lambda^2}. \tag{M5.2}$$

For $g < 1$ this shrinks, as it should. For $1 < g < 2$ it overshoots and comes out on the other side: oscillation. For $g > 2$ it grows. When the point is far out, the model's term points home as well, $D \approx$ const, and the full factor is $\sigma_{i+1}/\sigma_i - g_i$. On the usual grids $g_i$ falls along the way. So the explosion has a schedule: $|z - x|$ grows, turns round at the first step where the factor is below 1 in size, and then shrinks.

How many steps would be enough? Since $\sigma_i(\sigma_i - \sigma_{i+1}) \ge (\sigma_i^2 - \sigma_{i+1}^2)/2$, adding up the condition $g_i \le 2$ gives, for *every* grid,

$$N \ge \frac{\sigma_{\max}^2}{4 \lambda^2}. \tag{M5.3}$$

**Predict.** At $\lambda = 0.1$ that bound is 625 steps. Which run climbs higher before it turns, 32 steps or 512?
"""


# %%
def explicit_path(steps, bandwidth, seed=0):
    """|z − x| along Euler's method on the sum flow, the factor at every step, and the noise levels."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    x = p.sample(1, bandwidth, generator)
    path = sample_product(p.denoise, x, bandwidth, sigmas, "explicit", solver="euler", generator=generator)
    distance = torch.stack(list(path))[:, 0].sub(x).norm(dim=-1)
    g = sigmas[:-1] * (sigmas[:-1] - sigmas[1:]) / bandwidth**2
    return distance, sigmas[1:] / sigmas[:-1] - g, sigmas


# %% tags=["break-it"]
fig, ax = plt.subplots(figsize=(7.2, 3.6))
runs = pick(smoke=(16, 32, 64), laptop=(32, 128, 512))
for steps, color, marker in zip(runs, figures.PALETTE, figures.MARKERS, strict=False):
    distance, factor, sigmas = explicit_path(steps, 0.1)
    foretold = torch.cat([distance[:1], distance[0] * factor.abs().cumprod(0)])
    turn = int((factor.abs() < 1).nonzero()[0])
    ax.loglog(sigmas[:-1], distance[:-1] / 0.1, color=color, linestyle="-", label=f"{steps} steps")
    ax.loglog(sigmas[:-1], foretold[:-1] / 0.1, color=figures.BLACK, linestyle=":", linewidth=1.1)
    ax.plot(sigmas[turn], distance[turn] / 0.1, marker, color=color, markersize=9, markeredgecolor="white")
    print(f"{steps:4} steps: turn foretold at step {turn}, |z − x| largest at step {int(distance.argmax())}")
ax.plot([], [], color=figures.BLACK, linestyle=":", label="product of the factors")
ax.axhline(1, color="0.75", linewidth=0.8, linestyle="-")
ax.set(xlabel="noise level σ (falling)", ylabel="|z − x| / λ", xlim=(SIGMA_MAX * 1.1, 0.02), ylim=(1e-3, None))
ax.legend(fontsize=9)
figures.show(
    fig,
    alt=f"Distance from x in bandwidths, on a logarithmic scale, along Euler's method on the sum flow with {runs[0]}, {runs[1]} and "
    f"{runs[2]} steps. Each climbs by many orders of magnitude, follows the dotted prediction, and turns exactly at the marked step.",
)

# %% tags=["check"]
late = []
for bandwidth in (0.316, 0.1, 0.05):
    for steps in pick(smoke=(24, 64), laptop=(24, 64, 200)):
        distance, factor, _ = explicit_path(steps, bandwidth, seed=steps)
        late.append(abs(int(distance.argmax()) - int((factor.abs() < 1).nonzero()[0])))
print(f"{len(late)} runs with other λ, steps, x and noise: max |found − foretold| = {max(late)} steps")
assert max(late) <= 1

# %% [markdown]
r"""
The turn comes at the appointed step. And more steps make it *worse*: 512 of them climb some 75 orders of magnitude higher than 32: each factor is smaller, but there are many more of them above 1. Refining a grid does not help until it helps completely, at several thousand steps here (exercise 5.1). Someone who checks convergence by doubling 32 to 64 will conclude that nothing can be done.

The slider below shows the same at $\lambda = 0.3$, with all three samplers. Read both panels together: grey is where Euler oscillates, orange where it explodes.
"""

# %%
STEPS = pick(smoke=[8, 32], laptop=[8, 32, 128, 512, 1024])
KINDS = {"explicit": (figures.RED, "-"), "exponential": (figures.BLUE, "--"), "exact": (figures.GREEN, "-.")}


def approach(steps, kind, bandwidth=0.3):
    generator = torch.Generator().manual_seed(5)
    x = p.sample(1, bandwidth, generator).expand(3, 2)
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    path = sample_product(p.denoise, x, bandwidth, sigmas, kind, solver="euler", generator=generator)
    return torch.stack(list(path)).sub(x).norm(dim=-1) / bandwidth


stored = {(steps, kind): approach(steps, kind) for steps in STEPS for kind in KINDS}


# %%
def stability(steps):
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    g = sigmas[:-1] * (sigmas[:-1] - sigmas[1:]) / 0.3**2
    h = (sigmas[:-1] ** 2 - sigmas[1:] ** 2) / 2
    fig, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.7), sharex=True)
    for kind, (color, line) in KINDS.items():
        left.loglog(sigmas[:-1], stored[steps, kind][:-1].clamp(1e-4, 1e13), color=color, linestyle=line, linewidth=1.3)
        left.plot([], [], color=color, linestyle=line, label=kind)
    left.set(title=f"{steps} steps: |z − x| / λ", ylim=(1e-3, 1e13), xlim=(SIGMA_MAX, 0.02), xlabel="σ (falling)")
    left.legend(fontsize=8, loc="upper right")
    right.semilogx(sigmas[:-1], (1 - g).clamp(-6, 2), "o-", color=figures.RED, markersize=3)
    right.semilogx(sigmas[:-1], (-h / 0.3**2).exp(), "s--", color=figures.BLUE, markersize=3)
    right.axhspan(-1, 0, color="0.6", alpha=0.25, linewidth=0)
    right.axhspan(-6, -1, color=figures.ORANGE, alpha=0.2, linewidth=0)
    right.text(0.022, -5.6, "explodes", fontsize=8, ha="right")
    right.text(0.022, -0.75, "oscillates", fontsize=8, ha="right")
    right.set(title=f"factor of a step (largest g = {g.max():.3g})", ylim=(-6, 1.3), xlabel="σ (falling)")
    return fig


explore(
    stability,
    steps=STEPS,
    default={"steps": 32},
    alt="Left, distance to x along explicit, exponential and exact samplers at λ = 0.3, three noises each; right, the factor of "
    "every kernel step. Up to 512 steps the explicit factor starts below −1 and the distance explodes; at 1024 it stays within −1 and 1.",
)

# %% [markdown]
r"""
### Exercise 5.1 · How many steps for Euler? (★★, 15 min)

Write `steps_needed(bandwidth, sigma_min, sigma_max)`: the smallest number of steps of `karras_sigmas` for which no Euler factor of the kernel, $1 - g_i$, exceeds 1 in size. A grid of a few thousand numbers costs nothing; but think before you try them one by one.
"""


# %% tags=["exercise"]
def steps_needed(bandwidth, sigma_min, sigma_max):
    raise NotImplementedError  # your code


checks.steps_needed(steps_needed)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def steps_needed(bandwidth, sigma_min, sigma_max):
    def stable(steps):
        sigmas = karras_sigmas(steps, sigma_min, sigma_max)
        return (sigmas[:-1] * (sigmas[:-1] - sigmas[1:])).max() <= 2 * bandwidth**2

    high = 1
    while not stable(high):
        high *= 2
    low = high // 2  # unstable, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if stable(middle) else (middle, high)
    return high


checks.steps_needed(steps_needed)
for bandwidth in pick(smoke=(0.316, 0.1), laptop=(0.316, 0.1, 0.03, 0.003)):
    bound = SIGMA_MAX**2 / (4 * bandwidth**2)
    print(f"λ = {bandwidth}: {steps_needed(bandwidth, SIGMA_MIN, SIGMA_MAX):9,} steps, (M5.3) demands {bound:9,.0f}")

# %% [markdown]
r"""
### Exercise 5.2 · Is Heun safer? (★★, 15 min)

Heun's method has one order more. Write `heun_factor(here, there, bandwidth)`: the number by which one Heun step from the level `here` to `there` multiplies $z - x$, for the kernel's term alone. Then ask what happens to it for large $g$: does the higher order make the method safer?
"""


# %% tags=["exercise"]
def heun_factor(here, there, bandwidth):
    raise NotImplementedError  # your code


checks.heun_factor(heun_factor)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def heun_factor(here, there, bandwidth):
    step = there - here
    slope = here / bandwidth**2  # for z − x = 1
    slope_ahead = there / bandwidth**2 * (1 + step * slope)
    return 1 + step * (slope + slope_ahead) / 2


checks.heun_factor(heun_factor)
for there in (4.99, 4.996, 4.998):
    g = 5 * (5 - there) / 0.1**2
    print(f"σ = 5 → {there}, λ = 0.1: g = {g:.1f}, Euler {1 - g:6.2f}, Heun {heun_factor(5, there, 0.1):6.2f}")

# %% [markdown]
r"""
No. With a rate that hardly changes within a step Heun's factor is $1 - g + g^2/2$, which leaves $[-1, 1]$ at the same $g = 2$ and then grows like a square. A higher order buys accuracy where the method is stable. It does not buy stability.

## The exponential step

The kernel's term alone is a linear equation. With the heat time $t = \sigma^2/2$, $\mathrm dt = \sigma\, \mathrm d\sigma$, it reads $\mathrm dz/\mathrm dt = (z - x)/\lambda^2$ and we need no solver for it:

$$z(t + \Delta t) = x + \bigl(z(t) - x\bigr)\, e^{\Delta t/\lambda^2}, \qquad \Delta t < 0. \tag{14}$$

This holds for steps of any length. The model's flow alone is ordinary sampling. So alternate: a step of the ordinary solver to $z'$, then the kernel's exact flow over the same time,

$$z_{i+1} = x + (z_{i+1}' - x)\, e^{-h_i/\lambda^2}, \qquad h_i = \frac{\sigma_i^2 - \sigma_{i+1}^2}{2}. \tag{15}$$

Mathematicians call this a Lie splitting, after the same idea for matrix exponentials: $e^{A + B} \approx e^A e^B$. The factor lies between 0 and 1 for every step and every $\lambda$. The kernel cannot explode.
"""

# %% [markdown]
r"""
> **Erratum: Eq. 14 and 15**
>
> The paper prints the centre as $y$. The kernel in Eq. 9 is $G_\lambda(x - z)$, its score vanishes at $z = x$, and so the exponential must decay towards $x$; $y$ is the name of the sample that is being computed.
>
> It does not say what $t$ is. Insert (14) into $\mathrm dz/\mathrm d\sigma = \sigma(z - x)/\lambda^2$: the exponent must have the differential $\sigma\,\mathrm d\sigma/\lambda^2$. With $\lambda$ a standard deviation this means $t = \sigma^2/2$, and with the paper's own kernel $e^{-|u|^2/\lambda_{\text{paper}}^2}$, $\lambda_{\text{paper}} = \sqrt 2\, \lambda$, it means $t = \sigma^2$. For $t = \sigma$ or $t$ = number of the training step, Eq. 14 is not the flow of the kernel's score. We return to this under *clocks*.

> **Erratum: Algorithm 2, the stable solver**
>
> Inside its loop the paper prints $z_T \leftarrow z_t^* + (\epsilon_\theta(z_t, t, c) - z_t^*)\, e^{-\Delta t/\lambda^2}$. The left side must be the new state, since a $z_T$ that nobody reads cannot be returned as $z_0$. In the place of $\epsilon_\theta$, a noise, Eq. 15 has the state $z'$ after a solver step. And the exponent has the opposite sign of Eq. 15: one of the two repels. Read $\Delta t < 0$ in Eq. 15 and $\Delta t > 0$ in Algorithm 2.
>
> The unstable loop has the same slip, $z_t \leftarrow \epsilon_\theta - (x - z_t)/\lambda^2$: a score added to a noise, assigned to a state. The last line, $\nabla \mathcal L = \frac 1N \sum (y_i - x)$, points uphill; a minimiser needs $x - y_i$.
>
> Before its loop Algorithm 2 shrinks the start once by $e^{-\Delta t/\lambda^2}$. Eq. 15 has no such step. We keep it, since it is printed; $h_0$ vanishes with the step length, so it changes no limit and no order.
"""

# %% tags=["check"]
x = torch.tensor([0.3, -0.2], dtype=torch.float64)
for steps in (1, 3, 100):
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    path = list(sample_product(lambda z, sigma: z, x, 2.0, sigmas, "exponential", generator=generator))
    # From the start to the end the kernel's clock has run σ_max²/2.
    expected = x + (path[0] - x) * math.exp(-(SIGMA_MAX**2) / 2 / 2.0**2)
    error = (path[-1] - expected).abs().max().item()
    print(f"{steps:3} steps, a model that does nothing (D = z): max error of Eq. 15 {error:.1e}")
    assert error < 1e-15

# %% [markdown]
r"""
## What order does it have?

Two choices are open: the inner solver, and the splitting. The paper writes "with the existing integrator".

**Predict.** Heun inside costs twice the calls of Euler inside. Is it worth it?

We measure *pathwise*: the same noise, the same $x$, the largest distance to a reference solution at $\sigma = 0.02$. The reference is a Runge-Kutta method of order 8 from scipy with a tolerance of $10^{-10}$, on the whole sum flow, knowing nothing of any splitting.
"""

# %%
LOW, LAMBDA = 0.02, 0.3
n = pick(smoke=4, laptop=24)
generator = torch.Generator().manual_seed(3)
x = p.sample(n, LAMBDA, generator)
noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)


def referee(denoise, x, z, bandwidth, low, method, tolerance):
    """The sum flow from σ_max to `low`, in ln σ, by one of scipy's adaptive solvers; x and z are (n, d)."""

    def slope(log_sigma, flat):
        z, sigma = torch.as_tensor(flat).reshape(x.shape), math.exp(log_sigma)
        return (z - denoise(z, sigma) + sigma**2 / bandwidth**2 * (z - x)).numpy().ravel()

    span = (math.log(SIGMA_MAX), math.log(low))
    run = solve_ivp(slope, span, z.numpy().ravel(), method, rtol=tolerance, atol=tolerance / 100)
    return torch.as_tensor(run.y[:, -1]).reshape(x.shape)


reference = referee(p.denoise, x, SIGMA_MAX * noise, LAMBDA, LOW, "DOP853", 1e-10)


# %%
def lie(denoise, x, bandwidth, sigmas, z, solver):
    """Eq. 15 and nothing else, from the state z at sigmas[0]."""
    for here, there in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        z = solver_step(denoise, z, here, there, solver)
        z = x + (z - x) * math.exp(-(here**2 - there**2) / 2 / bandwidth**2)
    return z


steps = torch.tensor(pick(smoke=[8, 16, 32, 64], laptop=[8, 16, 32, 64, 128, 256, 512]))
error = {"Euler inside": [], "Heun inside": []}
for name, solver in (("Euler inside", "euler"), ("Heun inside", "heun")):
    for count in steps.tolist():
        grid = karras_sigmas(count + 1, LOW, SIGMA_MAX)[:-1]
        end = lie(p.denoise, x, LAMBDA, grid, SIGMA_MAX * noise, solver)
        error[name].append((end - reference).norm(dim=-1).max())

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(5.4, 3.4))
for (name, values), marker, each in zip(error.items(), figures.MARKERS, (1, 2), strict=False):
    ax.loglog(each * steps, values, marker=marker, label=name)
ax.loglog(steps, 2.2 * error["Euler inside"][-1] * steps[-1] / steps, color="0.6", linestyle=":", label="slope −1")
ax.set(xlabel="denoiser calls", ylabel="largest error along a path")
ax.legend()
figures.show(
    fig,
    alt="Pathwise error of the exponential splitting against denoiser calls on log axes, with Euler and with Heun as inner solver. "
    "Both fall with slope −1; Heun inside needs about five times as many calls for the same error.",
)

# %% tags=["check"]
for name, values in error.items():
    values = torch.stack(values)
    order = (values[:-1] / values[1:]).log2()
    print(f"{name}: measured order from doubling to doubling", " ".join(f"{o:.2f}" for o in order))
    assert abs(order[-1] - 1) < 0.15
radau = referee(p.denoise, x[:1], SIGMA_MAX * noise[:1], LAMBDA, LOW, "Radau", 1e-8)
print(f"two referees, DOP853 and Radau: they differ by {(radau - reference[:1]).norm():.1e}")
assert (radau - reference[:1]).norm() < 1e-5

# %% [markdown]
r"""
Order 1, with either solver. With Heun inside, the error comes from taking turns, not from the turns. $e^{hA}e^{hB}$ differs from $e^{h(A+B)}$ by $\frac{h^2}{2}[A, B]$ per step, and no accuracy *within* a turn can repair that. Heun inside doubles the bill and buys nothing. Here it even has the larger constant: Euler's own error is of the same order and happens to cancel part of the splitting's.

### Exercise 5.3 · Order two for nothing (★★★, 25 min)

Strang's remedy ([Strang, 1968](https://doi.org/10.1137/0705041)) is to make the step symmetric: half of the kernel's flow, the whole model step, the other half. The kernel costs no denoiser call, so this is free. Write `strang(denoise, x, bandwidth, sigmas, z)`, which takes the state `z` at `sigmas[0]` to the last level, with `solver_step(denoise, z, here, there, "heun")` for the model.

Compare with the start of Algorithm 2. Was somebody close?
"""


# %% tags=["exercise"]
def strang(denoise, x, bandwidth, sigmas, z):
    raise NotImplementedError  # your code


checks.strang(strang)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
@checks.unless_solved
def strang(denoise, x, bandwidth, sigmas, z):
    for here, there in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        # Algorithm 2 has a whole kernel step before the first model step and after the last: one half too much at each.
        half = math.exp(-(here**2 - there**2) / 4 / bandwidth**2)
        z = x + (z - x) * half
        z = solver_step(denoise, z, here, there, "heun")
        z = x + (z - x) * half
    return z


checks.strang(strang)
symmetric = []
for count in steps.tolist():
    grid = karras_sigmas(count + 1, LOW, SIGMA_MAX)[:-1]
    end = strang(p.denoise, x, LAMBDA, grid, SIGMA_MAX * noise)
    symmetric.append((end - reference).norm(dim=-1).max())
symmetric = torch.stack(symmetric)
print("Strang, measured order:", " ".join(f"{o:.2f}" for o in (symmetric[:-1] / symmetric[1:]).log2()))
with_euler, with_heun = error["Euler inside"][3], error["Heun inside"][2]
print(f"{2 * steps[2]} calls: Lie with Euler {with_euler:.1e}, with Heun {with_heun:.1e}, Strang {symmetric[2]:.1e}")

# %% [markdown]
r"""
## What would a stiff solver pay?

"Higher-order integrators are generally capable of dealing with this instability, but require many more score function evaluations", says the paper. This can be counted. Explicit adaptive methods (`RK45`) must resolve the kernel's decay. Implicit ones (`Radau`, `BDF`, and `LSODA`, which switches by itself) are made for stiffness ([Hairer and Wanner, 1996](https://doi.org/10.1007/978-3-642-05221-7)); each of their steps solves an equation, for which they difference the denoiser. We give each a relative tolerance of $10^{-4}$ and count every call, those for Jacobians too.

**Predict.** Halve $\lambda$. By what factor does the bill of `RK45` grow, and that of `Radau`?
"""

# %%
bandwidths = torch.logspace(pick(smoke=-0.8, laptop=-1.3), 0.3, pick(smoke=3, laptop=6), dtype=torch.float64).tolist()
METHODS = ("RK45", "Radau", "BDF", "LSODA")
calls = {name: [] for name in (*METHODS, "RK45, exact product flow")}
for bandwidth in tqdm(bandwidths, leave=False):
    generator = torch.Generator().manual_seed(0)
    x = p.sample(1, bandwidth, generator)
    z = SIGMA_MAX * torch.randn(1, 2, dtype=torch.float64, generator=generator)
    for method in METHODS:
        bill = counted(p.denoise)
        referee(bill, x, z, bandwidth, SIGMA_MIN, method, 1e-4)
        calls[method].append(bill.calls)
    bill = counted(product_denoiser(p.denoise, x, bandwidth))
    referee(bill, x, z, math.inf, SIGMA_MIN, "RK45", 1e-4)  # no kernel term: it is inside the denoiser
    calls["RK45, exact product flow"].append(bill.calls)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(6.6, 3.6))
bound = [SIGMA_MAX**2 / (4 * bandwidth**2) for bandwidth in bandwidths]
ax.loglog(bandwidths, bound, color="0.6", linestyle="-", linewidth=1, label="Euler, least number (M5.3)")
for (name, values), marker in zip(calls.items(), figures.MARKERS, strict=False):
    ax.loglog(bandwidths, values, marker=marker, label=name if "exact" in name else f"{name}, sum flow")
ax.axhline(63, color=figures.BLACK, linestyle=(0, (1, 2)), linewidth=1)
ax.text(0.048, 60, "32 exponential steps, Heun inside", va="top", fontsize=8.5)
ax.set(xlabel="bandwidth λ", ylabel="denoiser calls for one sample", ylim=(20, 3e4))
ax.legend(fontsize=8.5, loc="upper right")
figures.show(
    fig,
    alt=f"Denoiser calls of adaptive solvers against bandwidth. RK45 on the sum flow grows with slope −2, to {calls['RK45'][0]} at the "
    f"smallest bandwidth; Radau, BDF and LSODA stay at a few hundred; RK45 on the exact product flow needs about {calls['RK45, exact product flow'][0]}.",
)

# %% [markdown]
r"""
The explicit bill grows with $1/\lambda^2$, a factor of four for each halving. The implicit solvers hardly notice $\lambda$; they pay a few hundred calls for four digits, and in two dimensions a differenced Jacobian is cheap. In the 16 384 dimensions of a latent image it is not. So the paper's sentence is right, and its exponential step is a sound answer to the stiffness: no Jacobian, no extra call, no explosion.

The lowest curve is the same explicit `RK45` on the exact product flow. It asks for about as many calls at every bandwidth.

## The right solution of the wrong flow

Now hold the *converged* sum flow against the truth, $m(x) = D(x; \lambda) - x$ with its closed form. From here on a few definitions are shared: query points drawn from $p_\lambda$, the length of the true shift $|m|$, and the true spread $\sqrt{\operatorname{tr} \operatorname{Cov}_q}$, which is $\lambda\sqrt{\operatorname{tr} \partial D/\partial x}$ since $\operatorname{Cov}_q = \lambda^2\, \partial D/\partial x$ (chapter 04). Errors are medians over the queries, relative to $|m|$.

**Predict.** Of the distance between a sample after 32 exponential steps and the target $D(x; \lambda)$, which part is the solver's fault, and which the flow's?
"""


# %%
def case(bandwidth, count, seed=1):
    """Query points (Q, 2), the true mean-shift targets, their distance |m| (Q,), the true spread (Q,)."""
    x = p.sample(count, bandwidth, torch.Generator().manual_seed(seed))
    target = p.denoise(x, bandwidth)
    variance = bandwidth**2 * jacobian(lambda x: p.denoise(x, bandwidth), x).diagonal(dim1=1, dim2=2).sum(-1)
    return x, target, (target - x).norm(dim=-1), variance.sqrt()


def judge(bandwidth, sigmas, kernel, samples, count, seed=1, scale=None, inversion=False, **options):
    """Medians over queries: relative error of m from `samples` draws, spread over true spread; and calls a sample."""
    x, target, shift, spread = case(bandwidth, count, seed)
    bill, stack, generator = counted(p.denoise), x.expand(samples, *x.shape), torch.Generator().manual_seed(seed)
    if inversion:
        path = list(invert(bill, x, sigmas, options.get("solver", "heun")))
        options["centre"] = [c.expand_as(stack) for c in reversed(path)]
    *_, y = sample_product(bill, stack, scale or bandwidth, sigmas, kernel, generator=generator, **options)
    error = ((y.mean(0) - target).norm(dim=-1) / shift).median().item()
    return error, (y.var(0).sum(-1).sqrt() / spread).median().item(), bill.calls


# %%
Q = pick(smoke=6, laptop=64)
few, many = (karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX) for steps in (32, pick(smoke=128, laptop=512)))
for bandwidth in tqdm((0.316, 0.1, 0.03), leave=False):
    x, target, shift, _ = case(bandwidth, Q)
    z = SIGMA_MAX * torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    limit, opposite = (strang(p.denoise, x, bandwidth, many, start) for start in (z, -z))
    paper = lie(p.denoise, x, bandwidth, few, z, "heun")
    flow, solver = (((a - b).norm(dim=-1) / shift).median() for a, b in ((limit, target), (paper, limit)))
    apart = (limit - opposite).norm(dim=-1).max()
    print(
        f"λ = {bandwidth}: the flow's error {flow:.0%}, the solver's {solver:.0%}; opposite noises end {apart:.0e} apart"
    )

# %% [markdown]
r"""
Tens of per cent, and no number of steps will reduce it: the limit itself is in the wrong place. Opposite noises arrive at the same point, so there is no spread left either. Chapter 04 proved both. What this chapter adds is the division of blame: at 32 steps the larger part, and at more steps all of it, is the *flow's*. A better integrator brings us closer to a point that we do not want.

## Clocks

What if the paper's $\Delta t$ is not $\Delta\sigma^2$? In code, $t$ is often $\sigma$, or the number of the training step. Any increasing clock $t(\sigma)$ gives a stable solver; the question is which kernel it integrates. A step on the clock contracts by $e^{-\mathrm dt/\lambda_t^2}$, a Gaussian of standard deviation $\lambda_{\text{std}}$ in the sum flow contracts by $e^{-\sigma\, \mathrm d\sigma/\lambda_{\text{std}}^2}$. They are equal if

$$\lambda_{\text{std}} = \lambda_t\, \sqrt{\sigma\, \frac{\mathrm d\sigma}{\mathrm dt}}. \tag{M5.4}$$

So another clock is another kernel at every noise level. No constant converts $\lambda_t$ into a bandwidth.

**Predict.** On Stable Diffusion's noise levels, with integer steps as clock and $\lambda_t = 10$: is the implied kernel wider at the noisy or at the clean end?
"""

# %%
log_sigma = vp_sigma(torch.linspace(0, 1, 1000)).log().numpy()


def training_step(sigma):
    """The number 0…999 of the training step whose noise level is σ, between them linear in ln σ."""
    return float(np.interp(math.log(max(sigma, 1e-9)), log_sigma, np.arange(1000.0)))


CLOCKS = {"σ²/2 (heat)": lambda s: s**2 / 2, "σ": lambda s: s, "training step": training_step}
axis = np.geomspace(0.06, 14, 60)
implied, spent = {}, {}
for name, clock in tqdm(CLOCKS.items(), leave=False):
    time = np.array([clock(s) for s in axis])
    implied[name] = np.sqrt(axis * np.gradient(axis, time))
    spent[name] = (time[-1] - time) / (time[-1] - time[0])
said = [f"{10 * np.interp(s, axis, implied['training step']):.2f}" for s in (0.344, 1.618, 13.04)]
print("clock = training step, λ_t = 10: λ_std =", *said, "at t = 100, 500, 980")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), sharex=True)
for (name, values), marker in zip(implied.items(), figures.MARKERS, strict=False):
    left.loglog(axis, values / np.interp(1.618, axis, values), marker=marker, markevery=8, label=name)
    right.semilogx(axis, spent[name], marker=marker, markevery=8, label=name)
left.set(title="implied bandwidth, 1 at σ = 1.6", xlabel="noise level σ (falling)", xlim=(14, 0.06))
right.set(title="share of the kernel's pull spent", xlabel="noise level σ (falling)")
left.legend(fontsize=9)
figures.show(
    fig,
    alt="Left, the kernel bandwidth that a clock implies, against the noise level: constant for heat time, rising with √σ for t = σ, "
    "rising more steeply for training steps. Right, the share of the kernel's total pull that each clock has spent by a level.",
)

# %% tags=["check"]
sigmas = karras_sigmas(32, SIGMA_MIN, SIGMA_MAX)
x = p.sample(8, 0.1, torch.Generator().manual_seed(1))
ends = []
for scale, clock in ((0.1, "heat"), (0.1 * math.sqrt(2), lambda s: s**2)):
    generator = torch.Generator().manual_seed(2)
    *_, y = sample_product(p.denoise, x, scale, sigmas, "exponential", clock=clock, generator=generator)
    ends.append(y)
error = (ends[0] - ends[1]).abs().max().item()
print(f"heat clock with λ, against t = σ² with the paper's λ√2: max difference {error:.1e}")
assert error < 1e-12

# %%
print("                                error of m / spread, at λ = 0.316      0.1            0.03")
readings = {
    "t = σ²/2, λ": lambda λ: (None, "heat"),
    "t = σ, same number λ": lambda λ: (λ, CLOCKS["σ"]),
    "t = σ, λ_std = λ at σ = λ": lambda λ: (math.sqrt(λ), CLOCKS["σ"]),
    "t = step, λ_std = λ at σ = 2λ": lambda λ: (λ / np.interp(2 * λ, axis, implied["training step"]), training_step),
}
for name, reading in readings.items():
    row = []
    for bandwidth in (0.316, 0.1, 0.03):
        scale, clock = reading(bandwidth)
        error, spread, _ = judge(bandwidth, sigmas, "exponential", 8, Q, scale=scale, clock=clock)
        row.append(f"{error:8.0%} / {spread:.2f}")
    print(f"{name:42}", *row)

# %% [markdown]
r"""
Only the heat clock (with either convention for $\lambda$) is the flow of one fixed kernel. On the others the kernel is wide at the noisy end and tightens as noise falls, which is also what annealing does, so they cannot be called wrong; they are *other samplers*, with a bandwidth that means something else. Used with the same number, $t = \sigma$ is a far narrower kernel where it counts and gives back little but $x$. Matched at one level, it comes near the others. None is best at all three bandwidths, and none has any spread.

Which clock did the paper use? Its Figure 6 has $\lambda = 10^{-2}, 10, 10^3$. On Stable Diffusion $\sigma$ runs to 14.6, $\sigma^2$ to about 213 and the step to 999, so $\lambda = 10$ leaves the share $e^{-0.15}$, $e^{-2.1}$ or $e^{-10}$ of the starting noise, and the other two values leave all or nothing on every clock. The text does not decide; this book takes the reading that makes Eq. 14 true.

### Exercise 5.4 · A clock for the noised kernel (★★, 15 min)

Noise blurs everything, so one might rather add the score of the *noised* kernel, $\mathcal N(z; x, (\lambda^2 + \sigma^2) I)$. Find the clock that does it: `noised_kernel_clock(sigma, bandwidth)` returns $t(\sigma)$ such that the exponential step with $\lambda_t = \lambda$ integrates that term exactly. Use (M5.4). What is the kernel's rate in $\ln\sigma$ now, and is this flow still stiff?
"""


# %% tags=["exercise"]
def noised_kernel_clock(sigma, bandwidth):
    raise NotImplementedError  # your code


checks.noised_kernel_clock(noised_kernel_clock)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def noised_kernel_clock(sigma, bandwidth):
    # λ_std² = λ² + σ² in (M5.4) makes dt = λ² σ dσ/(λ² + σ²). The rate σ²/(λ² + σ²) is below 1: not stiff.
    return bandwidth**2 / 2 * math.log1p(sigma**2 / bandwidth**2)


checks.noised_kernel_clock(noised_kernel_clock)
for bandwidth in (0.316, 0.1, 0.03):
    options = {"clock": lambda s, λ=bandwidth: noised_kernel_clock(s, λ)}
    error, spread, _ = judge(bandwidth, sigmas, "exponential", pick(smoke=8, laptop=64), Q, **options)
    print(f"λ = {bandwidth}: error of m {error:.0%}, spread {spread:.2f} of the true one")

# %% [markdown]
r"""
Not stiff, and no better: at the two smaller bandwidths the error exceeds $|m|$. A right score at each level does not make a right flow; the open task at the end takes this up.

## A limited interval

The paper's first remedy for images is to apply the kernel "in limited interval through the sampling chain" (Section 3.4), after [Kynkäänniemi et al. (2024)](https://arxiv.org/abs/2404.07724) who do it with guidance. (Section 4.3 and Figure 8 cite Section 3.4 for "applying *guidance* in limited interval". So either may be meant, and chapter 09 tries both.) It does not say which interval. We can measure: for each interval $[\sigma_{\text{lo}}, \sigma_{\text{hi}}]$ the error of $m$, and the spread.

**Predict.** Two effects pull against each other. If the kernel starts late (small $\sigma_{\text{hi}}$), what has the sample decided by then? If it ends early (large $\sigma_{\text{lo}}$), what can the model still do?
"""

# %%
lows, highs = (0, 0.25, 0.5, 1, 1.5, 2), (1, 1.5, 2, 3, 5, 12)
tried, draws = pick(smoke=3, laptop=24), pick(smoke=6, laptop=24)
quick = karras_sigmas(pick(smoke=8, laptop=24), SIGMA_MIN, SIGMA_MAX)
maps = {}
for bandwidth in tqdm((0.316, 0.1, 0.03), leave=False):
    table = np.full((2, len(lows), len(highs)), np.nan)
    for i, low in enumerate(lows):
        for j, high in enumerate(highs):
            if low < high:
                ends = (low * bandwidth, high * bandwidth)
                table[:, i, j] = judge(bandwidth, quick, "exponential", draws, tried, seed=11, interval=ends)[:2]
    maps[bandwidth] = table

# %% [markdown]
r"""
A map made at 24 steps, with one set of queries, may choose an interval that is good by luck, or only for its solver's error. So the choice follows a rule. At 64 Heun steps, on three new sets of queries, the *full* interval stands against the four best of each map. It is kept unless another has the smaller error on **all three** sets. Of those the one of least mean error is taken, to a whole per cent; of equals, the shortest.
"""

# %%
fine, FULL = karras_sigmas(pick(smoke=8, laptop=64), SIGMA_MIN, SIGMA_MAX), (0, math.inf)


def contest(bandwidth, table):
    """Errors (3,) on the three sets of queries for the full interval and the four of least error in a map."""
    places = [np.unravel_index(k, table[0].shape) for k in table[0].ravel().argsort()[:4]]
    errors = {}
    for low, high in [FULL] + [(lows[i], highs[j]) for i, j in places]:
        interval, many = (low * bandwidth, high * bandwidth), 2 if (low, high) == FULL else draws
        runs = (judge(bandwidth, fine, "exponential", many, Q, seed, interval=interval) for seed in (12, 13, 14))
        errors[low, high] = np.array([error for error, *_ in runs])
    return errors


contests, CHOSEN = {}, {}
for bandwidth, table in tqdm(maps.items(), leave=False):
    found = contests[bandwidth] = contest(bandwidth, table)
    better = [ends for ends, errors in found.items() if (errors < found[FULL]).all()]
    rank = {(low, high): (found[low, high].mean().round(2), high - low) for low, high in better}
    CHOSEN[bandwidth] = min(rank, key=rank.get, default=FULL)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(2, 3, figsize=(7.2, 4.6), sharex=True, sharey=True)
for column, (bandwidth, table) in zip(axes.T, maps.items(), strict=True):
    for ax, values, cmap, top in zip(column, table, ("cividis_r", "PuOr"), (1, 2), strict=True):
        ax.imshow(values, cmap=cmap, vmin=0, vmax=top, origin="lower", aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            dark = value > 0.55 if top == 1 else abs(value - 1) > 0.7
            if not np.isnan(value):
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    low, high = CHOSEN[bandwidth]
    for ax in column:
        if (low, high) != FULL:
            corner = (highs.index(high) - 0.5, lows.index(low) - 0.5)
            ax.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=figures.RED, linewidth=2))
        ax.set_xticks(range(len(highs)), highs, fontsize=8)
        ax.set_yticks(range(len(lows)), lows, fontsize=8)
    column[0].set_title(f"λ = {bandwidth}: error of m")
    column[1].set(title="spread / true spread", xlabel="σ_hi / λ")
axes[0, 0].set_ylabel("σ_lo / λ")
axes[1, 0].set_ylabel("σ_lo / λ")
figures.show(
    fig,
    alt="Tables in colour for λ = 0.316, 0.1 and 0.03: relative error of the mean shift, and spread of the samples over the true "
    "spread, for intervals from σ_lo (rows) to σ_hi (columns). Small σ_hi gives large errors at small λ; large σ_hi gives no spread.",
)

# %% [markdown]
r"""
Start late, and the model has already decided for a place: at $\lambda = 0.03$ the sample sits on some branch of the tree, many bandwidths away, and the kernel has no time left to fetch it. Errors of several hundred to fifteen hundred per cent are samples of $p$ rather than of $q$. Start early, and the spread is gone before the model speaks. The border between the two failures is sharp, it lies at $\sigma_{\text{hi}}$ between one and three bandwidths, and it moves with $\lambda$. In no field of the tables are both numbers good.

The other end holds a surprise. On this density, at the two smaller bandwidths, it helps to *stop* the kernel at a level of about one bandwidth. From there the model alone carries the point on: it denoises a point with hardly any noise in it, something between a sampler and a mean-shift step, and makes up for part of what the sum has lost.

The red frames mark what the rule has chosen. Tables 1 and 2 (chapter 06) use these three, interpolated between them, and the sections below judge them *on other query points*.
"""

# %% tags=["check"]
INTERVAL = {λ: (low * λ, high * λ) for λ, (low, high) in CHOSEN.items()}
frozen = {λ: (low, high) for λ, low, high in intervals.CHOSEN}
print("errors on three sets of queries at", len(fine) - 1, "Heun steps")
for bandwidth, found in contests.items():
    for (low, high), errors in found.items():
        name = "full interval" if (low, high) == FULL else f"{low}λ to {high}λ"
        mark = "  <- chosen" if (low, high) == CHOSEN[bandwidth] else ""
        print(f"λ = {bandwidth:5}: {name:14}", *(f"{error:6.1%}" for error in errors), mark)
assert NAME == "smoke" or frozen == CHOSEN  # what Tables 1 and 2 were computed with

# %% [markdown]
r"""
## Inversion as the centre

The second remedy concerns what the denoiser gets to see. Contracted to $x$, the state carries hardly any noise, while the denoiser is told that it carries $\sigma$. An exact $D$ does not mind. A network, trained on $z = y + \sigma n$, does: the input is out of distribution. So for Stable Diffusion the paper takes as centre not $x$ but the *inverted trajectory*: integrate the model's flow from $x$ upwards to noise, keep all states $z_i^*$, and use $c_i = z_i^*$ in Eq. 15. These states, it is hoped, have the right noise.

**Predict.** Suppose $\lambda$ is so small that the kernel pins the state to its centre at the first steps. Then the sampler is at $z_i^*$. Where does its next model step lead, and where does it end?
"""


# %%
def noise_share(x, kernel, bandwidth, sigmas, **options):
    """The levels that the denoiser is told on the way, and rms |z − D|/(σ√d), the noise it finds in its input."""
    told, found = [], []

    def listen(z, sigma):
        y, level = p.denoise(z, sigma), float(torch.as_tensor(sigma).max())
        told.append(level)
        found.append(float((z - y).square().mean().sqrt()) / level)
        return y

    list(sample_product(listen, x, bandwidth, sigmas, kernel, solver="euler", generator=generator, **options))
    keep = slice(1 if kernel == "exact" else 0, -1)  # without the call for the start and the one at σ_min
    return told[keep], found[keep]


grid = karras_sigmas(pick(smoke=16, laptop=48), SIGMA_MIN, SIGMA_MAX)
queries = {"x drawn from p": p.sample(Q, 0.0, generator), "x drawn from p_λ": p.sample(Q, 0.1, generator)}
heard = {}
for where, x in queries.items():
    centre = list(reversed(list(invert(p.denoise, x, grid))))
    heard[where] = {
        "plain sampling": noise_share(x, "exponential", 1e9, grid),
        "exact": noise_share(x, "exact", 0.1, grid),
        "centre x": noise_share(x, "exponential", 0.1, grid),
        "centre z*": noise_share(x, "exponential", 0.1, grid, centre=centre),
    }

# %%
scan = torch.logspace(-1.7, 0.7, pick(smoke=4, laptop=11), dtype=torch.float64).tolist()
travel = {name: [] for name in ("exact", "centre x", "centre z*")}
x = queries["x drawn from p"]
centre = list(reversed(list(invert(p.denoise, x, grid))))
for bandwidth in tqdm(scan, leave=False):
    shift = (p.denoise(x, bandwidth) - x).norm(dim=-1)
    for name, kernel, options in (
        ("exact", "exact", {}),
        ("centre x", "exponential", {}),
        ("centre z*", "exponential", {"centre": centre}),
    ):
        *_, y = sample_product(p.denoise, x, bandwidth, grid, kernel, generator=generator, **options)
        travel[name].append(((y - x).norm(dim=-1) / shift).median())

# %%
names = ("plain sampling", "exact", "centre x", "centre z*")
looks = dict(zip(names, zip(figures.PALETTE, figures.MARKERS, figures.LINES, strict=False), strict=False))

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, axes = plt.subplots(1, 3, figsize=(7.4, 3.3), width_ratios=(1, 1, 1.15))
for ax, (where, curves) in zip(axes, heard.items(), strict=False):
    for name, (told, found) in curves.items():
        color, marker, line = looks[name]
        ax.loglog(told, found, color=color, marker=marker, markersize=3, markevery=4, linestyle=line, linewidth=1.2)
    ax.set(title=where.replace("_λ", "$_λ$"), xlabel="level the denoiser is told", xlim=(6, 0.009), ylim=(2e-2, 20))
    ax.axhline(1, color="0.75", linestyle="-", linewidth=0.8)
axes[0].set_ylabel("noise found / noise told")
for name, values in travel.items():
    color, marker, line = looks[name]
    axes[2].loglog(scan, torch.stack(values), color=color, marker=marker, markersize=4, linestyle=line, linewidth=1.2)
axes[2].set(title="x from p: |y − x| / |m|", xlabel="bandwidth λ", ylim=(1e-4, 20))
for name, (color, marker, line) in looks.items():
    axes[2].plot([], [], color=color, marker=marker, markersize=4, linestyle=line, label=name)
fig.legend(*axes[2].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
figures.show(
    fig,
    alt="Two panels of noise found in the denoiser's input over noise told, against the level. For x on the density the centre z* gives "
    "as much as plain sampling, the centre x far less; for x off it z* gives more than twice too much at worst. Third panel, |y − x|/|m| against λ: "
    f"1 to 3 for the exact sampler, whose draws scatter, near 0.8 for the centre x; for the centre z* at most {max(travel['centre z*'][:-3]):.1g} until λ is large.",
)

# %% tags=["check"]
off = {}
for where, x in queries.items():
    shift = (p.denoise(x, 0.1) - x).norm(dim=-1)
    for steps in pick(smoke=(32, 128), laptop=(64, 256, 1024)):
        sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
        centre = list(reversed(list(invert(p.denoise, x, sigmas))))
        *_, y = sample_product(p.denoise, x, 0.1, sigmas, "exponential", centre=centre, generator=generator)
        error = (y - p.denoise(x, SIGMA_MIN)).norm(dim=-1) / shift
        off.setdefault(where, []).append(error.median().item())
        lost = (error > 0.1).double().mean()
        print(
            f"{where:16}, {steps:4} steps: median |y − D(x; σ_min)|/|m| = {off[where][-1]:.1e}, above 0.1 for {lost:4.0%}"
        )
for where, medians in off.items():
    assert medians[-1] < 0.3 * medians[0], where

# %% [markdown]
r"""
Take the right panel first. A state pinned to $z_i^*$ takes a model step along the flow that $z^*$ came up by, and lands on $z_{i+1}^*$. At the end of that path stands $x$. So for every $\lambda$ well below $\sigma_{\max}$ the sampler returns **what it was given**. What shift it reports is the solver's error, on the way up and down, and the sampler's last step, which denoises once at $\sigma_{\min}$. In the check $y$ tends to $D(x; \sigma_{\min})$, a mean shift of bandwidth 0.002, while we had asked for 0.1.

For $x$ off the density not even that is certain. The last column of the check counts the points that do not come back, and refining the grid does not save them all: between branches the way down amplifies the smallest error, as at the watersheds of chapter 02, by more than these grids resolve. The paper says of SDI that its inversion "accumulates numerical errors during early stages of optimization". It is the same kind of inversion.

The other two panels ask whether the remedy does what it is for. Where $x$ is a clean point of the density (left) it does: the denoiser finds the noise that it is told, while with centre $x$ it finds a clean point announced as noise. The exact sampler is better than the latter but not innocent, since it takes $x$ for an observation with noise $\lambda$, and a clean $x$ has none. Where $x$ lies off the density (middle), and that is where distillation starts, things turn round. The flow up carries an improbable point to improbable noise, too much of it at every level, and it is the exact sampler whose input looks right.

If only the way down is guided, as we assume of the paper, the two directions differ. Then $y - x$ collects the difference between the guided and the unguided flow. That may be a good direction for images; it is not the mean shift of $p_\lambda$. And one sentence of its Section 4.5 needs care: that for small bandwidth "our denoised latent $z_0 \approx x^k$. This provides us with a convergence criteria". With this centre $z_0 \approx x$ holds at every $x$, mode or not.

## All samplers in one plot

The final account at $\lambda = 0.1$: the median relative error of $m$ against the denoiser calls for one sample. The grey band is the Monte-Carlo floor, the error of the mean of as many *perfect* draws from the closed form of $q$, in twenty repetitions. No sampler with the true spread can get below it by skill.

**Predict.** Which marks will end on the floor? Which on a plateau, and at what height? Where on this plot is the mean shift itself, $D(x; \lambda)$?
"""

# %%
MANY = pick(smoke=20, laptop=100)


def floor(bandwidth, draws, seed, repeats=20):
    """Errors, median over queries, of the mean of perfect draws from the closed form of q: one for each repeat."""
    x, target, shift, _ = case(bandwidth, Q, seed)
    generator = torch.Generator().manual_seed(seed)
    y = [p.product(point, bandwidth).sample(draws * repeats, generator=generator) for point in x]
    means = torch.stack(y).unflatten(1, (repeats, draws)).mean(2)  # (Q, repeats, 2)
    return ((means - target[:, None]).norm(dim=-1) / shift[:, None]).median(0).values


entries = {
    "exact, Heun": ("exact", MANY, {"solver": "heun"}),
    "exact, Euler": ("exact", MANY, {"solver": "euler"}),
    "exponential, Heun": ("exponential", 4, {"solver": "heun"}),
    "exponential, Euler": ("exponential", 4, {"solver": "euler"}),
    "exponential, chosen interval": ("exponential", MANY // 4, {"solver": "heun", "interval": INTERVAL[0.1]}),
    "exponential, inversion centre": ("exponential", 4, {"solver": "heun", "inversion": True}),
}
curves = {name: [] for name in entries}
for steps in tqdm(pick(smoke=(4, 8), laptop=(4, 8, 16, 32, 64)), leave=False):
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    for name, (kernel, samples, options) in entries.items():
        curves[name].append(judge(0.1, sigmas, kernel, samples, Q, seed=2, **options)[::2])
curves["explicit, Euler"] = []
for steps in pick(smoke=(64,), laptop=(6500, 13000)):
    sigmas = karras_sigmas(steps, SIGMA_MIN, SIGMA_MAX)
    curves["explicit, Euler"].append(judge(0.1, sigmas, "explicit", 2, Q, seed=2, solver="euler")[::2])

# %%
stiff = counted(p.denoise)
x, target, shift, _ = case(0.1, Q, seed=2)
start = SIGMA_MAX * torch.randn(1, 2, dtype=torch.float64, generator=generator)
ends = torch.cat([referee(stiff, point[None], start, 0.1, SIGMA_MIN, "LSODA", 1e-5) for point in x])
stiff_error = ((ends - target).norm(dim=-1) / shift).median()
lowest = floor(0.1, MANY, seed=2)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
fig, ax = plt.subplots(figsize=(7.2, 4.2))
looks = zip(curves.items(), figures.PALETTE, figures.MARKERS, figures.LINES, strict=True)
for (name, curve), color, marker, line in looks:
    error, calls_each = np.array(curve).T
    ax.loglog(calls_each, error.clip(max=4), color=color, marker=marker, linestyle=line, linewidth=1.4, label=name)
star = {"color": figures.ORANGE, "markersize": 12, "markeredgecolor": "black"}
ax.plot(stiff.calls / Q, stiff_error, "*", label="LSODA on the sum flow", **star)
ax.axhspan(lowest.min(), lowest.max(), color="0.5", alpha=0.25, linewidth=0)
ax.text(1.6e4, lowest.min() * 0.95, f"{MANY} perfect draws", ha="right", va="top", fontsize=9, color="0.35")
ax.plot(1, 0.02, "v", color=figures.BLACK, markersize=9, clip_on=False)
ax.annotate("mean shift: 1 call, error 0", (1, 0.02), (1.3, 0.0225), fontsize=9)
ax.set(xlabel="denoiser calls for one sample", ylabel="median relative error of m", ylim=(0.02, 3), xlim=(0.9, 2e4))
ax.legend(fontsize=8.5, loc="upper right", bbox_to_anchor=(1, 1.02))
figures.show(
    fig,
    alt=f"Relative error of the mean shift against denoiser calls at λ = 0.1. The exact samplers fall to the Monte-Carlo floor at {lowest.median():.0%}. "
    "All samplers of the sum flow stay on one plateau, explicit ones only beyond 6000 calls. Inversion centre: about 100 %. Mean shift: one call, no error.",
)

# %% [markdown]
r"""
Three levels. The exact samplers reach the floor within a few tens of calls and stay there. Everything that integrates the sum flow, be it exponential with a few dozen calls, `LSODA` with hundreds or Euler with thousands, arrives at the same plateau: they agree with one another and not with $m$. The inversion centre is no estimate of $m$ at any price.

And off the chart, in the lower left corner, the single call. With an exact denoiser nothing here beats $D(x; \lambda)$. Sampling needs another justification: the spread itself, a denoiser that errs (chapter 07), or guidance (chapters 04 and 08).

All numbers in one table, for three bandwidths, on query points that no interval was tuned on:
"""

# %%
sigmas, most = karras_sigmas(pick(smoke=8, laptop=32), SIGMA_MIN, SIGMA_MAX), pick(smoke=10, laptop=64)
rows = {
    "exact, Heun": lambda λ: ("exact", most, {}),
    "exact, Euler": lambda λ: ("exact", most, {"solver": "euler"}),
    "sum, exponential, full interval": lambda λ: ("exponential", 2, {}),
    "  interval chosen for this λ": lambda λ: ("exponential", most // 2, {"interval": INTERVAL[λ]}),
    "  centre z*": lambda λ: ("exponential", 2, {"inversion": True}),
    "  centre z*, chosen interval": lambda λ: ("exponential", most // 2, {"inversion": True, "interval": INTERVAL[λ]}),
    "  t = σ, same number": lambda λ: ("exponential", 2, {"clock": CLOCKS["σ"]}),
}
results = {}
for name, row in tqdm(rows.items(), leave=False):
    results[name] = []
    for bandwidth in (0.316, 0.1, 0.03):
        kernel, samples, options = row(bandwidth)
        results[name].append(judge(bandwidth, sigmas, kernel, samples, Q, seed=3, **options))

# %% tags=["check"]
lowest = [floor(bandwidth, most, seed=3).median() for bandwidth in (0.316, 0.1, 0.03)]
print(f"{len(sigmas) - 1} steps, {Q} queries, error / spread   λ = 0.316         0.1        0.03   calls")
print(f"{'mean shift, D(x; λ)':34}", "       0% / none" * 3, "     1")
print(f"{f'{most} perfect draws of q':34}", *(f"{error:9.0%} / 1.00" for error in lowest), "    none")
for name, found in results.items():
    print(f"{name:34}", *(f"{error:9.0%} / {spread:4.2f}" for error, spread, _ in found), f"{found[0][2]:7}")
worst = max(abs(spread - 1) for _, spread, _ in results["exact, Heun"])
print(f"exact sampler: max deviation of the spread from the true one {worst:.2f}")
assert worst < pick(smoke=0.6, laptop=0.1)
assert max(spread for _, spread, _ in results["sum, exponential, full interval"]) < 0.05

# %% [markdown]
r"""
The exact sampler is not to be told from perfect draws, in error or in spread, and at half the calls its Euler form nearly so. The chosen intervals cut the error of the sum flow on every set of queries that we tried: at 64 steps to about a half at λ = 0.316, to two thirds at 0.03, and by 4 to 25 % at 0.1. At the largest bandwidth they also leave it half of the spread; at the others, none. Both remedies together do not add up. And the first row costs one call.

### Open task 5 · Give the sum its spread back

The sum of the two scores is no mistake in itself. At each $\sigma$ it is $\nabla_z \log\bigl[p_\sigma(z)\, \mathcal N(z; x, \lambda^2 I)\bigr]$, the score of a perfectly good density, and at $\sigma = 0$ that density is $q$. What fails is the *flow*: the deterministic ODE does not carry one of these densities into the next. Langevin steps at each level would ([Du et al., 2023](https://arxiv.org/abs/2302.11552)). Add a corrector of $k$ Langevin steps per level, plot error and spread against calls in the figure above, find out how many calls it needs to reach the floor, and compare with the exact sampler. What is the largest stable Langevin step, and which of this chapter's bounds does it remind you of?
"""

# %% [markdown]
r"""
## Take-aways

- The clean kernel's score acts at the rate $\sigma^2/\lambda^2$ per unit of $\ln\sigma$; the exact product flow never exceeds 1. The stiffness is in the formulation.
- Euler turns from explosion to decay at a step that can be computed beforehand, and needs at least $\sigma_{\max}^2/4\lambda^2$ steps on any grid. Refining makes it worse first.
- The exponential step is stable for all steps and has order 1 whatever solver is inside. Strang's symmetric form has order 2 at the same price.
- Eq. 14 is the kernel's flow for $t = \sigma^2/2$ (with the paper's kernel: $t = \sigma^2$). Every other clock is another kernel at every level.
- An interval trades the mean against the spread. An inverted centre returns $x$, and keeps the input in distribution only where $x$ is.
- A convergence study compares a solver with its own limit. It cannot tell you what the limit is worth.

## What's next

We can now sample around a point, and we know what each sampler really returns. Chapter 06 puts one of them, any of them, into a loop that moves the point: mean-shift distillation.
"""
