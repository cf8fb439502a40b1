"""Autoencoders: an encoder, a latent representation, and a decoder."""

from math import prod
from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from jaxdae.errors import InputError
from jaxdae.model.base import Autoencoder, round_up
from jaxdae.model.layers import Conv, ConvTranspose, Dense, Dtype, Images, max_pool, relu, upsample


class StridedEncoder(nn.Module):
    """Strided convolutions, then a dense layer to the latent vector."""

    channels: int
    features: tuple[int, ...]
    latent_dim: int
    kernel_size: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch latent"]:
        inputs = self.channels
        for i, outputs in enumerate(self.features):
            name = f"conv_{i}"
            layer = Conv(inputs, outputs, self.dtype, self.kernel_size, stride=2, name=name)
            x, inputs = layer(x, rectify=i > 0), outputs
        size = prod(x.shape[1:])
        return Dense(size, self.latent_dim, self.dtype, name="latent")(x, rectify=True)


class StridedDecoder(nn.Module):
    """A dense layer, transposed convolutions of stride 2, and one of stride 1 to the image."""

    image_shape: tuple[int, int, int]
    features: tuple[int, ...]
    latent_dim: int
    kernel_size: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"]) -> Images:
        height, width, channels = self.image_shape
        stride, inputs = 2 ** len(self.features), self.features[-1]
        shape = (height // stride, width // stride, inputs)
        dense = Dense(self.latent_dim, prod(shape), self.dtype, name="dense")
        x = latent
        for i, outputs in enumerate(reversed(self.features)):
            layer = ConvTranspose(
                inputs, outputs, self.dtype, self.kernel_size, stride=2, name=f"conv_transpose_{i}"
            )
            x = layer(x, rectify=True) if i else layer.after_dense(dense, latent, shape)
            inputs = outputs
        output = ConvTranspose(inputs, channels, self.dtype, self.kernel_size, name="output")
        return output(x, rectify=True)


class DenoisingAutoencoder(Autoencoder):
    """`strided`: strided convolutions to a latent vector, transposed convolutions back.

    178,001 parameters at the defaults: the denoising autoencoder of the Keras tutorials.

    Fields:
      image_size: the (height, width) of the images; the dense layers depend on it.
      features: channels after each halving of the image.
      latent_dim: length of the latent vector.
      kernel_size: height and width of every kernel.
    """

    image_size: tuple[int, int] = (28, 28)
    features: tuple[int, ...] = (32, 64)
    latent_dim: int = 16
    kernel_size: tuple[int, int] = (3, 3)

    def setup(self) -> None:
        fields = (tuple(self.features), self.latent_dim, self.kernel_size, self.dtype)
        height, width = map(self.padded_side, _known(self.image_size))
        self.encoder = StridedEncoder(self.channels, *fields)
        self.decoder = StridedDecoder((height, width, self.outputs), *fields)

    def padded_side(self, side: int) -> int:
        return round_up(side, 2 ** len(self.features))


class MaxPoolEncoder(nn.Module):
    """Convolution, ReLU and 2x2 max-pooling, once for each entry of `features`."""

    inputs: int
    features: tuple[int, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        inputs = self.inputs
        for i, outputs in enumerate(self.features):
            x = max_pool(relu(Conv(inputs, outputs, self.dtype, name=f"conv_{i}")(x)))
            inputs = outputs
        return x


class MaxPoolDecoder(nn.Module):
    """Convolutions, each followed by (or, if transposed, itself) an up-sampling by 2."""

    outputs: int
    features: tuple[int, ...]
    upsampling: Literal["nearest", "transposed"]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        inputs, levels = self.features[-1], len(self.features)
        for i, outputs in enumerate(reversed(self.features)):
            if self.upsampling == "transposed":
                name = f"conv_transpose_{i}"
                x = relu(ConvTranspose(inputs, outputs, self.dtype, stride=2, name=name)(x))
            else:
                # The published network reduces 32 to 28 by one convolution without padding.
                padding = "VALID" if levels > 2 and i == levels - 1 else "SAME"
                layer = Conv(inputs, outputs, self.dtype, padding=padding, name=f"conv_{i}")
                x = upsample(relu(layer(x)))
            inputs = outputs
        return Conv(inputs, self.outputs, self.dtype, name="output")(x)


class MaxPoolAutoencoder(Autoencoder):
    """`maxpool`: 3x3 convolutions with max-pooling; the latent is a small image. Any image size.

    Fields:
      features: channels at each level; (16, 8, 8) and (32, 32) are the two published sizes.
      upsampling: "nearest" neighbour after a convolution (published with 16-8-8), or
        "transposed" convolutions (published with 32-32; 28,353 parameters).
    """

    features: tuple[int, ...] = (16, 8, 8)
    upsampling: Literal["nearest", "transposed"] = "nearest"

    def setup(self) -> None:
        features = tuple(self.features)
        self.encoder = MaxPoolEncoder(self.channels, features, self.dtype)
        self.decoder = MaxPoolDecoder(self.outputs, features, self.upsampling, self.dtype)

    def padded_side(self, side: int) -> int:
        # With n levels, the convolution without padding takes 2 pixels before the last doubling,
        # 4 in all: a side of 2**n m - 4 keeps its size (the pools round up).
        lost = 4 if self.upsampling == "nearest" and len(self.features) > 2 else 0
        return round_up(side + lost, 2 ** len(self.features)) - lost


class DenseStack(nn.Module):
    """Dense layers with ReLU between them, to a vector, or to an array of `shape`."""

    widths: tuple[int, ...]
    dtype: Dtype
    shape: tuple[int, ...] = (-1,)

    @nn.compact
    def __call__(self, x: Float[Array, "batch *inputs"]) -> Float[Array, "batch *shape"]:
        for i, (inputs, outputs) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            x = Dense(inputs, outputs, self.dtype, name=f"dense_{i}")(x, rectify=i > 0)
        return x.reshape(x.shape[0], *self.shape)


class DenseAutoencoder(Autoencoder):
    """`dense`: the image flattened to a vector, the baseline that shows what flattening loses.

    Fields:
      image_size: the (height, width) of the images.
      features: widths of the hidden layers between the image and the latent vector.
      latent_dim: length of the latent vector.
    """

    image_size: tuple[int, int] = (28, 28)
    features: tuple[int, ...] = (128,)
    latent_dim: int = 16

    def setup(self) -> None:
        size = _known(self.image_size)
        widths = (prod(size) * self.channels, *self.features, self.latent_dim)
        self.encoder = DenseStack(widths, self.dtype)
        widths = (self.latent_dim, *reversed(self.features), prod(size) * self.outputs)
        self.decoder = DenseStack(widths, self.dtype, (*size, self.outputs))


def _known(image_size: tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        raise InputError(
            "image_size=None: a network with dense layers takes images of one size: give its "
            "(height, width), such as (28, 28)"
        )
    height, width = image_size
    return height, width
