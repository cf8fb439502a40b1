"""Applying a network to any number of images.

    denoised = denoise(model, params, noisy)                    # in [0, 1]
    fast = jax.jit(lambda images: denoise(model, params, images))

On a CPU it keeps a large batch from falling out of the caches.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdae.errors import InputError
from jaxdae.model import Denoiser

Images = Float[Array, "n height width channels"]


def denoise(model: Denoiser, params: Any, images: Images, *, piece: int = 64) -> Images:
    """Restores images: a pure function, to be jitted by whoever calls it.

    On a CPU a large batch is taken piece by piece, for what a network makes of 64 images stays in
    the caches, and of 512 does not. Other platforms take it whole.

    Args:
      params: the model's parameters.
      images: corrupted images in [0, 1], (n, *model.image_shape).
      piece: images at a time on a CPU, at least 1.

    Returns:
      Images in [0, 1], (n, height, width, out_channels).

    Raises:
      InputError: the images have another shape than the model takes, or `piece` is less than 1.
    """

    def apply(images: Images) -> Any:
        return model.apply({"params": params}, images)

    def in_pieces(images: Images) -> Any:
        whole = len(images) // piece * piece
        parts = images[:whole].reshape(-1, piece, *images.shape[1:])
        out = lax.map(apply, parts)
        out = out.reshape(whole, *out.shape[2:])
        return out if whole == len(images) else jnp.concatenate([out, apply(images[whole:])])

    if piece < 1:
        raise InputError(f"piece={piece} must be at least 1 image, such as 64")
    if len(images) <= piece:
        return apply(images)
    return lax.platform_dependent(images, cpu=in_pieces, default=apply)
