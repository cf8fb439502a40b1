"""Autoencoders: an encoder, a latent between, and a decoder."""

from math import prod
from typing import Literal

from flax import linen as nn
from jaxtyping import Array, Float

from jaxdae.model.base import Autoencoder
from jaxdae.model.layers import Conv, ConvTranspose, Dense, Dtype, Images, max_pool, relu, upsample


class StridedEncoder(nn.Module):
    """Strided convolutions, flattened, and a dense layer to the latent vector."""

    image_shape: tuple[int, int, int]
    features: tuple[int, ...]
    latent_dim: int
    kernel_size: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch latent"]:
        inputs = self.image_shape[2]
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
      features: channels after each halving of the image.
      latent_dim: length of the latent vector.
      kernel_size: height and width of every kernel.
    """

    features: tuple[int, ...] = (32, 64)
    latent_dim: int = 16
    kernel_size: tuple[int, int] = (3, 3)

    def setup(self) -> None:
        fields = (tuple(self.features), self.latent_dim, self.kernel_size, self.dtype)
        self.encoder = StridedEncoder((*self.padded, self.image_shape[2]), *fields)
        self.decoder = StridedDecoder((*self.padded, self._outputs), *fields)

    @property
    def padded(self) -> tuple[int, int]:
        stride = 2 ** len(self.features)
        height, width = (-(-size // stride) * stride for size in self.image_shape[:2])
        return height, width


class MaxPoolEncoder(nn.Module):
    """Convolution, relu and 2x2 max-pooling, once for each entry of `features`."""

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
    """Convolutions, each followed (or replaced, if transposed) by an up-sampling by 2."""

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
                # The published network brings 32 back to 28 by one convolution without padding.
                padding = "VALID" if levels > 2 and i == levels - 1 else "SAME"
                layer = Conv(inputs, outputs, self.dtype, padding=padding, name=f"conv_{i}")
                x = upsample(relu(layer(x)))
            inputs = outputs
        return Conv(inputs, self.outputs, self.dtype, name="output")(x)


class MaxPoolAutoencoder(Autoencoder):
    """`maxpool`: 3x3 convolutions with max-pooling, to a small image as the latent.

    Fields:
      features: channels at each level; (16, 8, 8) and (32, 32) are the two published sizes.
      upsampling: "nearest" neighbour after a convolution (published with 16-8-8), or
        "transposed" convolutions (published with 32-32; 28,353 parameters).
    """

    features: tuple[int, ...] = (16, 8, 8)
    upsampling: Literal["nearest", "transposed"] = "nearest"

    def setup(self) -> None:
        features = tuple(self.features)
        self.encoder = MaxPoolEncoder(self.image_shape[2], features, self.dtype)
        self.decoder = MaxPoolDecoder(self._outputs, features, self.upsampling, self.dtype)

    @property
    def padded(self) -> tuple[int, int]:
        # Of n levels, the unpadded convolution takes 2 off before the last doubling: 4 in all, so
        # a side of 2**n m - 4 comes back as it went in (the pools round up).
        stride = 2 ** len(self.features)
        short = 4 if self.upsampling == "nearest" and len(self.features) > 2 else 0
        height, width = (-(-(s + short) // stride) * stride - short for s in self.image_shape[:2])
        return height, width


class DenseStack(nn.Module):
    """Dense layers with relu between them."""

    widths: tuple[int, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch *inputs"]) -> Float[Array, "batch outputs"]:
        for i, (inputs, outputs) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            x = Dense(inputs, outputs, self.dtype, name=f"dense_{i}")(x, rectify=i > 0)
        return x


class DenseAutoencoder(Autoencoder):
    """`dense`: the image flattened to a vector, the baseline that shows what flattening loses.

    Fields:
      features: widths of the hidden layers between the image and the latent vector.
      latent_dim: length of the latent vector.
    """

    features: tuple[int, ...] = (128,)
    latent_dim: int = 16

    def setup(self) -> None:
        height, width, channels = self.image_shape
        widths = (height * width * channels, *self.features, self.latent_dim)
        self.encoder = DenseStack(widths, self.dtype)
        widths = (self.latent_dim, *reversed(self.features), height * width * self._outputs)
        self.decoder = DenseStack(widths, self.dtype)
