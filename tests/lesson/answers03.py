"""Plausible mistakes in the exercises of chapter 03, for test_checks.py."""

from __future__ import annotations

import torch

from msd_teach.lesson import checks


def target(predict, x, n, alpha_bar):
    alpha, beta = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    return x - beta / alpha * (predict(alpha * x + beta * n, alpha_bar) - n)


def target_without_noise(predict, x, n, alpha_bar):
    return target(predict, x, n, alpha_bar) - ((1 - alpha_bar) / alpha_bar) ** 0.5 * n


def target_in_the_wrong_units(predict, x, n, alpha_bar):
    return x + alpha_bar**0.5 * (target(predict, x, n, alpha_bar) - x)


def target_uphill(predict, x, n, alpha_bar):
    return 2 * x - target(predict, x, n, alpha_bar)


def target_unscaled_input(predict, x, n, alpha_bar):
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
    return x - sigma * (predict(x + sigma * n, alpha_bar) - n)


def target_noise_by_variance(predict, x, n, alpha_bar):
    sigma = ((1 - alpha_bar) / alpha_bar) ** 0.5
    return x - sigma * (predict(alpha_bar**0.5 * x + (1 - alpha_bar) * n, alpha_bar) - n)


def curvature(a, s, sigma, width=None, blur=None):
    v = width or s**2 + sigma**2
    n = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    sech2 = torch.cosh(a * (sigma if blur is None else blur) * n / v) ** -2
    return float(sigma**2 * (1 / v - (a / v) ** 2 * (-(n**2) / 2).softmax(0) @ sech2))


def covariance(H, C, eta):
    h, Q = torch.linalg.eigh(H)
    return Q @ (eta**2 * (Q.mT @ C @ Q) / (1 - (1 - eta * h)[:, None] * (1 - eta * h))) @ Q.mT


def flow_covariance(H, C, eta):
    h, Q = torch.linalg.eigh(H)
    return Q @ (eta * (Q.mT @ C @ Q) / (h[:, None] + h)) @ Q.mT


def diagonal_covariance(H, C, eta):
    _, Q = torch.linalg.eigh(H)
    return Q @ torch.diag((Q.mT @ covariance(H, C, eta) @ Q).diagonal()) @ Q.mT


WRONG = [
    (checks.sds_target, target_without_noise, "not subtracted"),
    (checks.sds_target, target_in_the_wrong_units, "not σ_t"),
    (checks.sds_target, target_uphill, "The sign"),
    (checks.sds_target, target_unscaled_input, "trained on"),
    (checks.sds_target, target_noise_by_variance, "not 1 − ᾱ"),
    (checks.sds_curvature, lambda a, s, sigma: curvature(a, s, sigma, blur=0.0), "not averaged"),
    (checks.sds_curvature, lambda a, s, sigma: curvature(a, s, sigma) / sigma**2, "σ² is missing"),
    (
        checks.sds_curvature,
        lambda a, s, sigma: curvature(a, s, sigma, blur=(s**2 + sigma**2) ** 0.5),
        "second blur",
    ),
    (checks.sds_curvature, lambda a, s, sigma: curvature(a, s, sigma, width=sigma**2), "variance s²"),
    (checks.stationary_covariance, flow_covariance, "small steps"),
    (checks.stationary_covariance, lambda H, C, eta: covariance(H, C, eta) / eta, "not with η"),
    (checks.stationary_covariance, lambda H, C, eta: eta**2 * C, "one step"),
    (checks.stationary_covariance, diagonal_covariance, "independent"),
]
