"""What every network shares: images in, images out."""

import jax.numpy as jnp
from flax import linen as nn

from jaxdae.errors import InputError
from jaxdae.model.layers import Dtype, Images, Latent


class Denoiser(nn.Module):
    """What every architecture shares: images in, images out; a subclass has `restore`.

    Fields:
      image_shape: (height, width, channels) of the images that come in.
      out_channels: channels of the reconstruction; None for as many as come in.
      dtype: the type to compute in.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    out_channels: int | None = None
    dtype: Dtype = None

    def __call__(self, images: Images) -> Images:
        """Reconstructs images: (batch, *image_shape) to (batch, height, width, out_channels)."""
        return nn.sigmoid(self.logits(images))

    def logits(self, images: Images) -> Images:
        """The reconstruction before the sigmoid, float32.

        Raises:
          InputError: the images have another shape than `image_shape`.
        """
        return self._crop(self.restore(self._pad(images)))

    def _pad(self, images: Images) -> Images:
        shape = tuple(self.image_shape)
        if images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(
                f"images of shape {images.shape} do not fit this model, which takes (batch, "
                f"{', '.join(map(str, shape))}): build one with image_shape={images.shape[1:]}"
            )
        return jnp.pad(images, ((0, 0), *self.edges, (0, 0)))

    def _crop(self, images: Images) -> Images:
        (top, _), (left, _) = self.edges
        height, width, _ = self.image_shape
        images = images[:, top : top + height, left : left + width]
        return images.astype(jnp.promote_types(images.dtype, jnp.float32))

    @property
    def padded(self) -> tuple[int, int]:
        """The height and width that the layers see."""
        return self.image_shape[:2]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The zeros before and after that make an image's height and width those."""
        spare = [total - size for total, size in zip(self.padded, self.image_shape, strict=False)]
        return [(total // 2, total - total // 2) for total in spare]

    @property
    def _outputs(self) -> int:
        return self.image_shape[2] if self.out_channels is None else self.out_channels


class Autoencoder(Denoiser):
    """A denoiser in two halves with a latent between: a subclass sets up `encoder`, `decoder`."""

    def restore(self, images: Images) -> Images:
        return self._decode(self.encoder(images))

    def encode(self, images: Images) -> Latent:
        """The latent representation of images, (batch, *latent).

        Raises:
          InputError: the images have another shape than `image_shape`.
        """
        return self.encoder(self._pad(images))

    def decode(self, latent: Latent) -> Images:
        """Images in [0, 1], (batch, height, width, out_channels), from latent representations."""
        return nn.sigmoid(self._crop(self._decode(latent)))

    def _decode(self, latent: Latent) -> Images:
        return self.decoder(latent).reshape(latent.shape[0], *self.padded, self._outputs)
