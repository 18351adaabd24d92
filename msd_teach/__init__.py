"""Mean-shift distillation: a diffusion model turned into a gradient towards the modes of its distribution."""

from . import pocket  # which hands the bundled model to the loader
from .denoisers import Denoiser, IdealDenoiser, counted, guided, rescaled
from .distill import Rendered, StepInfo, distill
from .latent.prior import DiffusionPrior
from .plane.densities import GaussianMixture, checkerboard, eight_gaussians, fractal, image_density, pinwheel, spiral
from .plane.learned import LearnedDenoiser, train_denoiser
from .product import product_denoiser, sample_product
from .sampling import invert, karras_sigmas, sample
from .targets import ISM, MSD, PFD, SDI, SDS, VSD, MeanShift, Target

__version__ = "0.1.0"

__all__ = [
    "ISM",
    "MSD",
    "PFD",
    "SDI",
    "SDS",
    "VSD",
    "Denoiser",
    "DiffusionPrior",
    "GaussianMixture",
    "IdealDenoiser",
    "LearnedDenoiser",
    "MeanShift",
    "Rendered",
    "StepInfo",
    "Target",
    "checkerboard",
    "counted",
    "distill",
    "eight_gaussians",
    "fractal",
    "guided",
    "image_density",
    "invert",
    "karras_sigmas",
    "pinwheel",
    "pocket",
    "product_denoiser",
    "rescaled",
    "sample",
    "sample_product",
    "spiral",
    "train_denoiser",
]
