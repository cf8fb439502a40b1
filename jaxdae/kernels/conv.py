"""Convolutions, transposed ones and dense layers, lowered to what is fast on each platform.

`conv` and `conv_transpose` compute what `jax.lax.conv_general_dilated` and
`jax.lax.conv_transpose` compute, for 2-d images with channels last (NHWC images, HWIO kernels).
GPUs and TPUs get exactly those two; a CPU gets the primitives of `jaxdae.kernels.primitives`.

At stride 1 a convolution is also a data gradient with the kernel rotated, so the form with the
smaller patches is taken: the data gradient where there are fewer channels out than in.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdae.kernels import build, im2col
from jaxdae.kernels.conv_shape import ONE_PIXEL, ConvShape, mirrored, transpose_padding
from jaxdae.kernels.primitives import conv_data_grad_p, conv_forward_p, convolve, precise_sum

Padding = str | Sequence[tuple[int, int]]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Form = Callable[..., Array]


def conv(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "kh kw in out"],
    bias: Float[Array, " out"] | None = None,
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    rectify: bool = False,
) -> Float[Array, "batch new_height new_width out"]:
    """Convolves images with a kernel; equals `lax.conv_general_dilated` on NHWC and HWIO.

    Args:
      x: images, any float dtype.
      kernel: the kernel, unflipped (cross-correlation, as everywhere in deep learning). It is
        rounded to x's dtype; on a CPU its gradient is not.
      bias: is added to each output, summed in float32 at least, as its gradient is.
      stride: the step between outputs, the same along both axes.
      padding: "SAME", "VALID", or a (low, high) pair for each axis.
      rectify: take ReLU(x) in place of x.

    Returns:
      `ceil(height / stride)` by `ceil(width / stride)` outputs under "SAME", in x's dtype.
      Products are accumulated in float32 where x is narrower.
    """
    plain = _with_relu_and_bias(partial(_conv_lax, stride=stride, padding=padding), rectify)
    fast = partial(_conv_cpu, stride=stride, padding=padding, rectify=rectify)
    return _by_platform(fast, plain, x, kernel, bias)


def conv_transpose(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "kh kw in out"],
    bias: Float[Array, " out"] | None = None,
    *,
    stride: int = 1,
    rectify: bool = False,
) -> Float[Array, "batch height*stride width*stride out"]:
    """Up-samples by a fractionally strided convolution; equals `lax.conv_transpose(..., "SAME")`.

    The kernel is not flipped: Keras's `Conv2DTranspose` has the same kernel rotated by 180 degrees
    with its last two axes exchanged.

    Args:
      x: images, any float dtype.
      kernel: the kernel, HWIO. It is rounded to x's dtype; on a CPU its gradient is not.
      bias, rectify: as in `conv`.
      stride: the factor by which both axes grow.

    Returns:
      Images of `stride` times the height and width, in x's dtype.
    """
    plain = _with_relu_and_bias(partial(_conv_transpose_lax, stride=stride), rectify)
    fast = partial(_conv_transpose_cpu, stride=stride, rectify=rectify)
    return _by_platform(fast, plain, x, kernel, bias)


def _by_platform(fast: Form, plain: Form, x: Array, kernel: Array, bias: Array | None) -> Array:
    """The fast form on a CPU, for images whose size is not symbolic; else the plain one."""
    arguments = (x, kernel) if bias is None else (x, kernel, bias)
    sized = all(isinstance(side, int) for side in x.shape[1:3])
    return lax.platform_dependent(*arguments, cpu=fast if sized else plain, default=plain)


def dense(
    x: Float[Array, "batch *inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"] | None = None,
    *,
    rectify: bool = False,
) -> Float[Array, "batch outputs"]:
    """A fully connected layer: each example's numbers times a matrix, and a bias added.

    Args:
      x: vectors, or images, which are taken as vectors; any float dtype.
      kernel: the matrix. It is rounded to x's dtype; on a CPU its gradient is not.
      bias: as in `conv`.
      rectify: take ReLU(x) in place of x.

    Returns:
      Vectors in x's dtype, accumulated in float32 at least.
    """
    return lax.platform_dependent(
        *((x, kernel) if bias is None else (x, kernel, bias)),
        cpu=partial(_dense_cpu, rectify=rectify),
        default=_with_relu_and_bias(_dense_lax, rectify),
    )


def in_conv_layout(
    function: Callable[..., Array], *images: Float[Array, "batch height width channels"]
) -> Array:
    """Applies a function to images in the layout that this platform's convolutions use inside.

    Between two convolutions the transpositions then meet, and cancel.

    Args:
      function: one that treats all pixels alike, or knows that height and width are the axes 1
        and 2, but does not ask which of the axes 0 and 3 is the batch and which the channels.
      images: its arguments; axes of length 1 broadcast, so a bias is `bias[None, None, None]`.
    """
    if build.available():
        return function(*images)
    return lax.platform_dependent(*images, cpu=partial(im2col.swapped, function), default=function)


def weighted_image_sum(
    weights: Float[Array, "batch n"],
    images: Float[Array, "n+1 height width channels"],
    bias: Float[Array, " channels"],
) -> Float[Array, "batch height width channels"]:
    """Weighted sums of images, of which the last has weight 1, and a bias: in weights' dtype."""
    # Chosen here: what is traced of a function with a name is kept, whichever it chose then.
    form = _weighted_sum_dense if build.available() else _weighted_sum_im2col
    return lax.platform_dependent(weights, images, bias, cpu=form, default=_weighted_sum_dense)


def _conv_cpu(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    stride: int,
    padding: Padding,
    rectify: bool,
) -> Array:
    size, window = x.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, (stride, stride), padding)
    shape = ConvShape(size, window, stride, tuple(padding))
    kh, kw, inputs, outputs = kernel.shape
    if stride == 1 and outputs < inputs:
        opposite = ConvShape(shape.y_size, window, 1, mirrored(shape.padding, window))
        return _data_grad_rotated(x, kernel, bias, opposite, rectify)
    matrix = kernel.reshape(kh * kw * inputs, outputs)
    return convolve(conv_forward_p, matrix, x, bias, shape, rectify)


def _conv_transpose_cpu(
    x: Array, kernel: Array, bias: Array | None = None, *, stride: int, rectify: bool
) -> Array:
    padding = transpose_padding(kernel.shape, stride)
    if stride == 1 and kernel.shape[2] <= kernel.shape[3]:
        return _conv_cpu(x, kernel, bias, stride=1, padding=padding, rectify=rectify)
    size = (x.shape[1] * stride, x.shape[2] * stride)
    shape = ConvShape(size, kernel.shape[:2], stride, mirrored(padding, kernel.shape))
    return _data_grad_rotated(x, kernel, bias, shape, rectify)


def _data_grad_rotated(
    x: Array, kernel: Array, bias: Array | None, shape: ConvShape, rectify: bool
) -> Array:
    """A data gradient by a kernel rotated by 180 degrees, its last two axes exchanged."""
    matrix = kernel.reshape(-1, kernel.shape[3])  # which is read as it lies
    return convolve(conv_data_grad_p, matrix, x, bias, shape, rectify, rotated=True)


def _dense_cpu(x: Array, kernel: Array, bias: Array | None = None, *, rectify: bool) -> Array:
    if build.available() and x.dtype in build.TYPES and kernel.dtype == jnp.float32:
        pixels = x.reshape(x.shape[0], 1, 1, prod(x.shape[1:]))
        return convolve(conv_forward_p, kernel, pixels, bias, ONE_PIXEL, rectify)[:, 0, 0]
    if rectify:
        x = jax.nn.relu(x) if x.ndim != 4 else im2col.swapped(jax.nn.relu, x)
    out = _dense_lax(x, kernel)
    return out if bias is None else precise_sum(out, bias)


def _weighted_sum_im2col(weights: Array, images: Array, bias: Array) -> Array:
    images = im2col.swap(images.astype(weights.dtype))
    out = im2col.matmul(images.reshape(-1, images.shape[3]), _and_one(weights), (1, 1))
    out = out.astype(weights.dtype).reshape(*images.shape[:3], len(weights))
    return im2col.swap(precise_sum(out, bias[:, None, None, None]))


def _weighted_sum_dense(weights: Array, images: Array, bias: Array) -> Array:
    everywhere = jnp.broadcast_to(bias, images.shape[1:]).reshape(-1)
    out = dense(_and_one(weights), images.reshape(len(images), -1), everywhere)
    return out.reshape(len(out), *images.shape[1:])


def _and_one(weights: Array) -> Array:
    return jnp.pad(weights, ((0, 0), (0, 1)), constant_values=1)


# The forms of GPUs and TPUs.


def _with_relu_and_bias(form: Callable[..., Array], rectify: bool) -> Callable[..., Array]:
    def layer(x: Array, kernel: Array, bias: Array | None = None) -> Array:
        out = form(jax.nn.relu(x) if rectify else x, kernel)
        return out if bias is None else precise_sum(out, bias)

    return layer


def _conv_lax(x: Array, kernel: Array, *, stride: int, padding: Any) -> Array:
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), padding, dimension_numbers=DIMENSIONS
    )


def _conv_transpose_lax(x: Array, kernel: Array, *, stride: int) -> Array:
    return lax.conv_transpose(
        x, kernel.astype(x.dtype), (stride, stride), "SAME", dimension_numbers=DIMENSIONS
    )


def _dense_lax(x: Array, kernel: Array) -> Array:
    return x.reshape(x.shape[0], prod(x.shape[1:])) @ kernel.astype(x.dtype)
