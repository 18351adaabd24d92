"""What has parameters θ and makes pictures of them; no line here knows a denoiser."""
