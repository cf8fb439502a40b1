"""Denoising autoencoders in JAX and Flax: models, corruptions and training as pure functions."""

__version__ = "0.1.0"
