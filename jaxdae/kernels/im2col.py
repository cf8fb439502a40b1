"""Convolutions as matrix products around im2col and col2im, in XLA's operations.

    forward      y = im2col(x)^T W        data gradient    x = col2im(W y)
    weight gradient    W = im2col(x) y^T

A CPU without a C++ compiler computes these. XLA's own CPU backend has no fast path for the
gradients of a strided or dilated convolution.

Here images lie with channels outermost and the batch innermost: (channels, height, width, batch). A
shifted image is then a copy of whole rows, pads are cheap, and all products run along their
operands' rows, which is what XLA's CPU backend is fastest at. What stands between two convolutions
goes through `kernels.in_conv_layout`, which computes it in that layout: so the transpositions at
the borders meet, and XLA cancels them. (It does not move them across a ReLU by itself, except where
it can give the arrays another layout; with few channels or many images it copies, at twice the
time.)

`col2im` is written by polyphase components: output positions with the same remainder modulo the
stride receive the same taps, so each component is a sum of shifted arrays, and they interleave by
one reshape.

In bfloat16 the products take half the time and the maps move half the bytes. XLA would convert what
they move to float32 and back, so they move it as integers.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdae.kernels.conv_shape import ConvShape


def swap(x: Array) -> Array:
    """(batch, height, width, channels) to (channels, height, width, batch), and back."""
    return x.transpose(3, 1, 2, 0)


def swapped(function: Callable[..., Array], *images: Array) -> Array:
    """A function of images, computed in the layout of this module."""
    return swap(function(*map(swap, images)))


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """A product of matrices along one axis of each, accumulated in float32 at least."""
    precise = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=precise
    )


def forward(w: Array, x: Array, shape: ConvShape) -> Array:
    """y, (out, rows, columns, batch), from w, (patch, out), and x; accumulated in float32."""
    patches = _flat(im2col(x, shape))
    # Transposed by itself: a product with a transposed first operand is slow.
    columns = lax.optimization_barrier(w.T.reshape(-1)).reshape(w.shape[::-1])
    return matmul(columns, patches, (1, 0)).reshape(w.shape[1], *shape.y_size, x.shape[3])


def data_grad(w: Array, y: Array, shape: ConvShape) -> Array:
    """x, (in, height, width, batch), from w, (patch, out), and y."""
    patches = matmul(w, _flat(y), (1, 0))
    return col2im(patches.reshape(len(w), *y.shape[1:]), shape)


def weight_grad(x: Array, y: Array, shape: ConvShape) -> Array:
    """w, (patch, out), from x and y."""
    patches, y = _flat(im2col(x, shape)), _flat(y)
    if len(patches) < len(y):  # the longer one first is faster
        return matmul(y, patches, (1, 1)).T
    return matmul(patches, y, (1, 1))


def im2col(x: Float[Array, "in height width batch"], shape: ConvShape) -> Array:
    """The patch under the kernel at every position: (patch, rows, columns, batch).

    A patch is in kernel order, channels last, as the rows of `kernel.reshape(-1, out)` are.
    """
    (kh, kw), stride = shape.kernel, shape.stride
    rows, columns = shape.y_size
    channels, _, _, batch = x.shape
    dtype = x.dtype
    if dtype.itemsize == 2:
        x = lax.bitcast_convert_type(x, jnp.uint16)
    padding = ((0, 0, 0), *((low, high, 0) for low, high in shape.padding), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    taps = [
        lax.slice(
            x,
            (0, i, j, 0),
            (channels, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, batch),
            (1, stride, stride, 1),
        )
        for i in range(kh)
        for j in range(kw)
    ]
    return lax.bitcast_convert_type(lax.concatenate(taps, 0), dtype)


def col2im(patches: Float[Array, "patch rows columns batch"], shape: ConvShape) -> Array:
    """Adds every patch back to where it was cut out, the adjoint of `im2col`."""
    stride, zero = shape.stride, jnp.zeros((), patches.dtype)
    height, width = shape.x_size
    size = tuple(-(-side // stride) for side in shape.x_size)  # of one component
    channels = patches.shape[0] // shape.taps
    batch = patches.shape[3]

    def taps(axis: int, phase: int) -> list[tuple[int, tuple[int, int, int]]]:
        """The taps that reach this phase of an axis, each with the shift (a pad) it comes by."""
        low, positions = shape.padding[axis][0], shape.y_size[axis]
        reaching = [k for k in range(shape.kernel[axis]) if (k - low - phase) % stride == 0]
        shifts = [(k - low - phase) // stride for k in reaching]
        return [
            (k, (shift, size[axis] - positions - shift, 0))
            for k, shift in zip(reaching, shifts, strict=True)
        ]

    def component(row: int, column: int) -> Array:
        terms = [
            lax.pad(
                lax.slice_in_dim(patches, tap * channels, (tap + 1) * channels),
                zero,
                ((0, 0, 0), down, right, (0, 0, 0)),
            )
            for i, down in taps(0, row)
            for j, right in taps(1, column)
            for tap in [i * shape.kernel[1] + j]
        ]
        # A stride larger than the kernel leaves components that no tap reaches.
        return sum(terms[1:], terms[0]) if terms else jnp.zeros((channels, *size, batch))

    if stride == 1:
        return component(0, 0)
    strides = range(stride)
    rows = [jnp.stack([component(row, column) for column in strides], axis=3) for row in strides]
    out = jnp.stack(rows, axis=2)  # channels, rows, phase, columns, phase, batch
    out = out.reshape(channels, size[0] * stride, size[1] * stride, batch)
    return out[:, :height, :width].astype(patches.dtype)


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)
