"""Stable Diffusion's family as a denoiser in latents; outside the pocket model's trainer the one room that knows diffusers."""
