"""What every network shares: images in, images out, of any height and width."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdae.errors import InputError
from jaxdae.model.layers import Dtype, Images, Latent

NoiseLevel = Float[Array, ""] | Float[Array, " batch"] | Float[Array, "batch height width 1"]
ACTIVATIONS = {"sigmoid": nn.sigmoid, "linear": lambda x: x}


class Denoiser(nn.Module):
    """A network from images to images. A subclass has `forward`.

    The height and width are read from the images. They are padded by reflection, at the bottom and
    on the right, to sides that the network's strides divide (`padded_side`), and the output is
    cropped to the size that came in. A network with a dense layer takes images of one size only.

    Fields:
      channels: channels of the images that come in.
      out_channels: channels of the images that go out; None for as many as come in.
      image_size: the only (height, width) that the network takes; None for any.
      output: the output's nonlinearity: "sigmoid" for outputs in [0, 1], or "linear".
      dtype: the type to compute in; parameters are float32.
    """

    channels: int = 1
    out_channels: int | None = None
    image_size: tuple[int, int] | None = None
    output: Literal["sigmoid", "linear"] = "sigmoid"
    dtype: Dtype = None

    takes_noise_level = False  # True for a class whose output depends on `sigma`

    def __call__(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        """Denoises images.

        Args:
          images: (batch, height, width, channels), nominally in [0, 1].
          sigma: the standard deviation of their noise, on the same scale: one number, one for each
            image, or a map. Networks that do not take a noise level ignore it.

        Returns:
          (batch, height, width, out_channels), float32 at least.

        Raises:
          InputError: the images do not fit `channels` or `image_size`.
        """
        return self.activation(self.logits(images, sigma))

    def logits(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        """The output before its nonlinearity, which a cross-entropy takes; else as a call."""
        height, width = images.shape[1:3]
        return self._cropped(self.forward(self._padded(images), sigma), (height, width))

    def forward(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        """The layers: padded images to the output before its nonlinearity, of the same size."""
        raise NotImplementedError

    def activation(self, logits: Images) -> Images:
        """The output's nonlinearity, which `output` names."""
        return ACTIVATIONS[self.output](logits)

    def padded_side(self, side: int) -> int:
        """The height or width that an image is padded to, for the network's strides."""
        return side

    @property
    def stride(self) -> int:
        """The sides that the network computes on are multiples of it: a tile must begin at one."""
        return 1

    @property
    def reach(self) -> int | None:
        """How many pixels away, along each axis, an output may depend on an input.

        None if that is unknown, or if the network takes images of one size only.
        """
        return None

    @property
    def estimates(self) -> bool:
        """True if the network estimates the noise level where it is not given: `noise_level`."""
        return False

    @property
    def outputs(self) -> int:
        """Channels of the images that go out."""
        return self.channels if self.out_channels is None else self.out_channels

    @property
    def example(self) -> Images:
        """A batch of one image of zeros, to initialise the network with."""
        return jnp.zeros((1, *(self.image_size or (32, 32)), self.channels))

    def _padded(self, images: Images) -> Images:
        self._check(images)
        for axis in (1, 2):
            side = images.shape[axis]
            images = reflect(images, axis, self.padded_side(side) - side)
        return images

    def _check(self, images: Images) -> None:
        size = "height, width" if self.image_size is None else ", ".join(map(str, self.image_size))
        fits = images.ndim == 4 and images.shape[3] == self.channels
        if fits and self.image_size is not None:
            fits = tuple(images.shape[1:3]) == tuple(self.image_size)
        if not fits:
            raise InputError(
                f"images of shape {images.shape} do not fit this network, which takes (batch, "
                f"{size}, {self.channels}): change the images, or build another network"
            )

    def _cropped(self, images: Images, size: tuple[int, int]) -> Images:
        images = images[:, : size[0], : size[1]]
        return images.astype(jnp.promote_types(images.dtype, jnp.float32))


class Autoencoder(Denoiser):
    """A denoiser in two halves: a subclass sets up the modules `encoder` and `decoder`."""

    def forward(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        return self.decoder(self.encoder(images))

    def encode(self, images: Images) -> Latent:
        """The latent representation of images: (batch, ...).

        Raises:
          InputError: the images do not fit `channels` or `image_size`.
        """
        return self.encoder(self._padded(images))

    def decode(self, latent: Latent) -> Images:
        """Images from latent representations, as a call gives them: (batch, height, width,
        out_channels). A network of any size leaves its padding in the result.
        """
        images = self.decoder(latent)
        return self.activation(self._cropped(images, self.image_size or images.shape[1:3]))


def reflect(x: Images, axis: int, count: Any) -> Images:
    """Continues images along an axis by `count` reflected rows; the border row is not repeated.

    An image that is smaller than `count` is reflected back and forth.
    """
    if isinstance(count, int) and count == 0:
        return x
    side = x.shape[axis]
    period = jnp.maximum(2 * (side - 1), 1)  # one row is repeated
    places = (side + jnp.arange(count)) % period
    return jnp.concatenate([x, jnp.take(x, jnp.minimum(places, period - places), axis)], axis)


def round_up(side: int, multiple: int) -> int:
    """The next multiple."""
    return -(-side // multiple) * multiple
