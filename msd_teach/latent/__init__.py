"""Stable Diffusion's family as a denoiser in latents; the one room that knows diffusers."""
