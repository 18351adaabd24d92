"""Plausible mistakes in the exercises of chapter 02, for test_checks.py."""

from __future__ import annotations

import math

import torch

from msd_teach.lesson import checks


def noise(denoise, z_t, alpha_bar):
    alpha, beta = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return (z_t - alpha * denoise(z_t / alpha, beta / alpha)) / beta


def noise_without_alpha(denoise, z_t, alpha_bar):
    alpha, beta = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    return (z_t - denoise(z_t / alpha, beta / alpha)) / beta


def noise_in_the_wrong_units(denoise, z_t, alpha_bar):
    beta = math.sqrt(1 - alpha_bar)
    return (z_t - math.sqrt(alpha_bar) * denoise(z_t, beta)) / beta


def noise_by_the_variance(denoise, z_t, alpha_bar):
    return noise(denoise, z_t, alpha_bar) / math.sqrt(1 - alpha_bar)


def heun(denoise, z, here, there):
    slope = (z - denoise(z, here)) / here
    trial = z + (there - here) * slope
    return z + (there - here) * (slope + (trial - denoise(trial, there)) / there) / 2


def euler(denoise, z, here, there):
    return z + (there - here) * (z - denoise(z, here)) / here


def heun_without_trial(denoise, z, here, there):
    return z + (there - here) * ((z - denoise(z, here)) / here + (z - denoise(z, there)) / there) / 2


def heun_at_one_level(denoise, z, here, there):
    trial = euler(denoise, z, here, there)
    return z + (there - here) * ((z - denoise(z, here)) / here + (trial - denoise(trial, here)) / here) / 2


def heun_without_half(denoise, z, here, there):
    return 2 * heun(denoise, z, here, there) - z


def leave_one_out(data, sigma):
    exponent = -torch.cdist(data, data).square() / (2 * sigma**2)
    exponent.fill_diagonal_(-math.inf)
    constant = math.log(len(data) - 1) + data.shape[1] / 2 * math.log(2 * math.pi * sigma**2)
    return exponent.logsumexp(-1) - constant


def leave_none_out(data, sigma):
    exponent = -torch.cdist(data, data).square() / (2 * sigma**2)
    return exponent.logsumexp(-1) - math.log(len(data)) - math.log(2 * math.pi * sigma**2)


def covariance(z, data, sigma):
    weight = (-torch.cdist(z, data).square() / (2 * sigma**2)).softmax(-1)
    residual = data - (weight @ data)[:, None]
    return torch.einsum("ni,nij,nik->njk", weight, residual, residual)


def second_moment(z, data, sigma):
    weight = (-torch.cdist(z, data).square() / (2 * sigma**2)).softmax(-1)
    return torch.einsum("ni,ij,ik->njk", weight, data, data)


def scatter_around_z(z, data, sigma):
    weight = (-torch.cdist(z, data).square() / (2 * sigma**2)).softmax(-1)
    return torch.einsum("ni,nij,nik->njk", weight, data - z[:, None], data - z[:, None])


WRONG = [
    (checks.noise_prediction, noise_without_alpha, "factor α"),
    (checks.noise_prediction, noise_in_the_wrong_units, "expects z"),
    (checks.noise_prediction, noise_by_the_variance, "not by its variance"),
    (checks.heun_step, euler, "Euler"),
    (checks.heun_step, heun_without_trial, "predicted point"),
    (checks.heun_step, heun_at_one_level, "level `there`"),
    (checks.heun_step, heun_without_half, "factor ½"),
    (checks.leave_one_out, leave_none_out, "sees itself"),
    (checks.leave_one_out, lambda data, sigma: leave_one_out(data, sigma) + math.log(11 / 12), "M − 1"),
    (
        checks.leave_one_out,
        lambda data, sigma: leave_one_out(data, sigma) + math.log(2 * math.pi * sigma**2),
        "constant",
    ),
    (checks.posterior_covariance, second_moment, "second moment"),
    (checks.posterior_covariance, scatter_around_z, "not from z"),
    (checks.posterior_covariance, lambda z, data, sigma: covariance(z, data, sigma) / sigma**2, "σ² is missing"),
]
