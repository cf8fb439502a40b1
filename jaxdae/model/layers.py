"""The layers of the networks, as Flax modules, and the functions between them."""

from dataclasses import KW_ONLY
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdae.kernels import (
    Padding,
    conv,
    conv_transpose,
    dense,
    dense_then_conv_transpose,
    in_conv_layout,
    precise_sum,
)

Dtype = Any
Images = Float[Array, "batch height width channels"]
Latent = Float[Array, "batch *latent"]


class Affine(nn.Module):
    """The base of the layers: a kernel and a bias, which are attributes.

    Fields:
      inputs, outputs: channels (or features) in and out.
      dtype: the type to compute in; None for the wider of the input's and the parameters'.
      use_bias: False for a layer without a bias: `bias` is None then.
      kernel_init: the initialiser of the kernel.
    """

    inputs: int
    outputs: int
    dtype: Dtype = None
    _: KW_ONLY
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()

    @property
    def window(self) -> tuple[int, ...]:
        """The kernel's spatial axes."""
        return ()

    def setup(self) -> None:
        shape = (*self.window, self.inputs, self.outputs)
        self.kernel = self.param("kernel", self.kernel_init, shape)
        zeros = nn.initializers.zeros
        self.bias = self.param("bias", zeros, (self.outputs,)) if self.use_bias else None

    def cast(self, x: Array) -> Array:
        """The input, converted to the type to compute in."""
        return x.astype(self.dtype or jnp.result_type(x, self.kernel))


class Dense(Affine):
    """A fully connected layer: (batch, ...), with `inputs` values in each, to (batch, outputs)."""

    def __call__(self, x: Array, rectify: bool = False) -> Array:
        """Applies the layer to x, flattened; to relu(x) if `rectify`."""
        return dense(self.cast(x), self.kernel, self.bias, rectify=rectify)


class Conv(Affine):
    """A convolution: `jaxdae.kernels.conv`, which describes stride and padding."""

    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding = "SAME"

    @property
    def window(self) -> tuple[int, ...]:
        return self.kernel_size

    def __call__(self, x: Images, rectify: bool = False) -> Images:
        """Applies the layer to images; to relu(x) if `rectify`."""
        x = self.cast(x)
        return conv(
            x, self.kernel, self.bias, stride=self.stride, padding=self.padding, rectify=rectify
        )


class ConvTranspose(Conv):
    """A transposed convolution with "SAME" padding: height and width grow by the stride."""

    def __call__(self, x: Images, rectify: bool = False) -> Images:
        x = self.cast(x)
        return conv_transpose(x, self.kernel, self.bias, stride=self.stride, rectify=rectify)

    def after_dense(self, layer: Dense, latent: Latent, shape: tuple[int, int, int]) -> Images:
        """Equals `self(layer(latent).reshape(-1, *shape))`, with less work for a large batch."""
        if layer.bias is None or self.bias is None:
            return self(layer(latent).reshape(-1, *shape))
        latent, parameters = self.cast(latent), (layer.kernel, layer.bias, self.kernel, self.bias)
        return dense_then_conv_transpose(latent, *parameters, shape=shape, stride=self.stride)


# Functions between convolutions. `in_conv_layout` keeps the layout that convolutions compute in.


def relu(x: Images) -> Images:
    """max(x, 0)."""
    return in_conv_layout(nn.relu, x)


def add(x: Images, *others: Images) -> Images:
    """The sum of images, in the dtype of the first. Axes of length 1 broadcast."""
    return in_conv_layout(precise_sum, x, *others)


def max_pool(x: Images) -> Images:
    """2x2 max-pooling with stride 2 of values that are at least 0; odd sides are rounded up.

    The first of equal values receives the gradient, as in TensorFlow.
    """

    def pool(x: Array) -> Array:
        first, height, width, last = x.shape
        # The padding is 0, which is never above the values.
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(first, x.shape[1] // 2, 2, x.shape[2] // 2, 2, last)
        best, *others = (x[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
        for other in others:
            best = jnp.where((other > best) | jnp.isnan(other), other, best)
        return best

    return in_conv_layout(pool, x)


def upsample(x: Images) -> Images:
    """Doubles height and width by repeating each pixel (nearest neighbour)."""

    def repeat(x: Array) -> Array:
        first, height, width, last = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (first, height, 2, width, 2, last))
        return x.reshape(first, 2 * height, 2 * width, last)

    return in_conv_layout(repeat, x)


def pixel_unshuffle(x: Images) -> Images:
    """Halves height and width: the channels of 2x2 pixels, row by row, become those of one."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def pixel_shuffle(x: Images) -> Images:
    """Undoes `pixel_unshuffle`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)
