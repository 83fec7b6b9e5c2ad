"""Noise, noise levels, samplers, latent tiles and the denoising loop (no networks, no video, no files)."""
