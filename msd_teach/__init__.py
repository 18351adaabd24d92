"""Mean-shift distillation: a diffusion model turned into a gradient towards the modes of its distribution."""

from .denoisers import Denoiser, IdealDenoiser, counted, guided
from .densities import GaussianMixture, checkerboard, eight_gaussians, fractal, image_density, pinwheel, spiral
from .product import product_denoiser
from .sampling import invert, karras_sigmas, sample

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "GaussianMixture",
    "IdealDenoiser",
    "checkerboard",
    "counted",
    "eight_gaussians",
    "fractal",
    "guided",
    "image_density",
    "invert",
    "karras_sigmas",
    "pinwheel",
    "product_denoiser",
    "sample",
    "spiral",
]
