"""One checker an exercise: `checks.<name>(your_function)` prints 'not yet' or how right it is, or says what is wrong."""

from .chapter00 import bandwidth_from_paper, two_point_denoiser
from .chapter01 import best_step, mean_shift_step, merging_bandwidth
from .chapter02 import heun_step, leave_one_out, noise_prediction, posterior_covariance

__all__ = [
    "bandwidth_from_paper",
    "best_step",
    "heun_step",
    "leave_one_out",
    "mean_shift_step",
    "merging_bandwidth",
    "noise_prediction",
    "posterior_covariance",
    "two_point_denoiser",
]
