"""Convolution and transposed convolution, lowered to what is fast on each platform.

`conv` and `conv_transpose` compute what `jax.lax.conv_general_dilated` and
`jax.lax.conv_transpose` compute, for 2-d images with channels last (NHWC images, HWIO kernels).
GPUs and TPUs get exactly those two. XLA's CPU backend has no fast path for the gradients of a
strided or dilated convolution, so on a CPU both become matrix products around two linear maps:

    unfold (im2col)    the patch under the kernel at every position, as a vector
    fold   (col2im)    the adjoint: every patch added back where it was cut out

    conv(x, w)            =  unfold(x) @ w             the kernel as a (patch, out) matrix
    conv_transpose(x, w)  =  fold(x @ w)               the kernel as an (in, patch) matrix

Each map is a JAX primitive with the other as its transpose, so reverse-mode differentiation of a
transposed convolution is one `unfold` of the output's gradient, shared by the gradients of the
input and of the kernel; forward mode and `vmap` work as usual. (Differentiated as it is written,
`fold` is slow, and `custom_vjp` would give up forward mode.) `fold` is written by phases: output
positions with the same remainder modulo the stride receive the same taps, so each phase is a sum
of shifted arrays and the phases interleave by one reshape. Nothing is scattered, and nothing is
multiplied by a zero that dilation put there.

At stride 1 a convolution is also a transposed one with the kernel rotated, so the form with the
smaller patches is taken: `fold` where there are fewer channels out than in, else `unfold`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Padding = str | Sequence[tuple[int, int]]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """Where a kernel stands on an image: patch `i` starts at pixel `stride * i - padding_low`."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    padding: tuple[tuple[int, int], ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of patches along each axis."""
        return tuple(
            (size + low + high - window) // self.stride + 1
            for size, window, (low, high) in zip(self.image, self.kernel, self.padding, strict=True)
        )


def conv(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "kh kw in out"],
    *,
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "batch new_height new_width out"]:
    """Convolves images with a kernel; equals `lax.conv_general_dilated` on NHWC and HWIO.

    Args:
      x: images, any float dtype; the kernel has the same one.
      kernel: the kernel, unflipped (cross-correlation, as everywhere in deep learning).
      stride: the step between outputs, the same along both axes.
      padding: "SAME", "VALID", or a (low, high) pair for each axis.

    Returns:
      `ceil(height / stride)` by `ceil(width / stride)` outputs under "SAME", in x's dtype.
      Products are accumulated in float32 where x is narrower.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_conv_matmul, stride=stride, padding=padding),
        default=partial(_conv_lax, stride=stride, padding=padding),
    )


def conv_transpose(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "kh kw in out"],
    *,
    stride: int = 1,
) -> Float[Array, "batch height*stride width*stride out"]:
    """Up-samples by a fractionally strided convolution; equals `lax.conv_transpose(..., "SAME")`.

    The kernel is not flipped: Keras's `Conv2DTranspose` has the same kernel rotated by 180 degrees
    with its last two axes exchanged.

    Args:
      x: images, any float dtype; the kernel has the same one.
      kernel: the kernel, HWIO.
      stride: the factor by which both axes grow.

    Returns:
      Images of `stride` times the height and width, in x's dtype.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_conv_transpose_matmul, stride=stride),
        default=partial(_conv_transpose_lax, stride=stride),
    )


def unfold(
    x: Float[Array, "batch height width channels"], geometry: Geometry
) -> Float[Array, "batch rows columns patch"]:
    """Cuts out the patch under every kernel position (im2col), in kernel order, channels last."""
    return unfold_p.bind(x, geometry=geometry)


def fold(
    patches: Float[Array, "batch rows columns patch"], geometry: Geometry
) -> Float[Array, "batch height width channels"]:
    """Adds every patch back to the pixels it was cut from (col2im): the adjoint of `unfold`."""
    return fold_p.bind(patches, geometry=geometry)


def _unfold(x: Array, *, geometry: Geometry) -> Array:
    (kh, kw), stride = geometry.kernel, geometry.stride
    rows, columns = geometry.grid
    batch, _, _, channels = x.shape
    padding = ((0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), padding)
    taps = [
        lax.slice(
            x,
            (0, i, j, 0),
            (batch, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(kh)
        for j in range(kw)
    ]
    return lax.concatenate(taps, 3)


def _fold(patches: Array, *, geometry: Geometry) -> Array:
    stride, zero = geometry.stride, jnp.zeros((), patches.dtype)
    height, width = geometry.image
    size = tuple(-(-side // stride) for side in geometry.image)  # of one phase
    channels = patches.shape[-1] // (geometry.kernel[0] * geometry.kernel[1])

    def taps(axis: int, phase: int) -> list[tuple[int, tuple[int, int, int]]]:
        """The kernel offsets that reach this phase, each with the shift (a pad) it comes by."""
        low, grid = geometry.padding[axis][0], geometry.grid[axis]
        reaching = [k for k in range(geometry.kernel[axis]) if (k - low - phase) % stride == 0]
        shifts = [(k - low - phase) // stride for k in reaching]
        return [
            (k, (shift, size[axis] - grid - shift, 0))
            for k, shift in zip(reaching, shifts, strict=True)
        ]

    def phase(row: int, column: int) -> Array:
        terms = [
            lax.pad(
                lax.slice_in_dim(patches, tap * channels, (tap + 1) * channels, axis=3),
                zero,
                ((0, 0, 0), down, right, (0, 0, 0)),
            )
            for i, down in taps(0, row)
            for j, right in taps(1, column)
            for tap in [i * geometry.kernel[1] + j]
        ]
        # A stride larger than the kernel leaves phases that no tap reaches.
        return sum(terms[1:], terms[0]) if terms else jnp.zeros((len(patches), *size, channels))

    if stride == 1:
        return phase(0, 0)
    strides = range(stride)
    rows = [jnp.stack([phase(row, column) for column in strides], axis=3) for row in strides]
    out = jnp.stack(rows, axis=2)  # batch, rows, phase, columns, phase, channels
    out = out.reshape(len(patches), size[0] * stride, size[1] * stride, channels)
    return out[:, :height, :width].astype(patches.dtype)


def _linear_primitive(name: str, function: Callable[..., Array]) -> Primitive:
    """Makes `function` (linear, batch axis first) one operation to JAX's transformations."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames="geometry"))

    def shape(x, *, geometry):
        return x.update(shape=jax.eval_shape(partial(function, geometry=geometry), x).shape)

    def batch(arguments, axes, *, geometry):
        x = jnp.moveaxis(arguments[0], axes[0], 0)
        out = primitive.bind(x.reshape(-1, *x.shape[2:]), geometry=geometry)
        return out.reshape(*x.shape[:2], *out.shape[1:]), 0

    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive


unfold_p = _linear_primitive("unfold", _unfold)
fold_p = _linear_primitive("fold", _fold)
ad.deflinear2(unfold_p, lambda g, _, geometry: [fold(g, geometry)])
ad.deflinear2(fold_p, lambda g, _, geometry: [unfold(g, geometry)])


def _matmul(x: Array, matrix: Array) -> Array:
    """Multiplies along the last axis, accumulating in float32 at least."""
    precise = jnp.promote_types(x.dtype, jnp.float32)
    rows = x.reshape(-1, x.shape[-1])
    out = lax.dot(rows, matrix, preferred_element_type=precise).astype(x.dtype)
    return out.reshape(*x.shape[:-1], matrix.shape[1])


def _conv_matmul(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    image, window = x.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image, window, (stride, stride), padding)
    geometry = Geometry(image, window, stride, tuple(padding))
    kh, kw, inputs, outputs = kernel.shape
    if stride == 1 and outputs < inputs:
        # Output p takes x[p + k - low]; scattered, x[p] reaches output p - k + low.
        mirrored = tuple(
            (k - 1 - low, k - 1 - high)
            for k, (low, high) in zip(window, geometry.padding, strict=True)
        )
        return _matmul_fold(x, kernel[::-1, ::-1], Geometry(geometry.grid, window, 1, mirrored))
    return _matmul(unfold(x, geometry), kernel.reshape(kh * kw * inputs, outputs))


def _conv_transpose_matmul(x: Array, kernel: Array, *, stride: int) -> Array:
    image = (x.shape[1] * stride, x.shape[2] * stride)
    if stride == 1 and kernel.shape[2] <= kernel.shape[3]:
        return _conv_matmul(x, kernel, stride=1, padding=_transpose_padding(kernel, 1))
    # lax pads the dilated input by `low` in front; scattered, that crops k - 1 - low pixels.
    crops = tuple(
        (k - 1 - low, k - 1 - high)
        for k, (low, high) in zip(kernel.shape[:2], _transpose_padding(kernel, stride), strict=True)
    )
    geometry = Geometry(image, kernel.shape[:2], stride, crops)
    return _matmul_fold(x, kernel[::-1, ::-1], geometry)


def _transpose_padding(kernel: Array, stride: int) -> list[tuple[int, int]]:
    """What `lax.conv_transpose` calls "SAME": (low, high) padding of the dilated input."""
    totals = [k + stride - 2 for k in kernel.shape[:2]]
    lows = [
        k - 1 if stride > k - 1 else -(-total // 2)
        for k, total in zip(kernel.shape[:2], totals, strict=True)
    ]
    return [(low, total - low) for low, total in zip(lows, totals, strict=True)]


def _matmul_fold(x: Array, kernel: Array, geometry: Geometry) -> Array:
    kh, kw, inputs, outputs = kernel.shape
    matrix = kernel.transpose(2, 0, 1, 3).reshape(inputs, kh * kw * outputs)
    return fold(_matmul(x, matrix), geometry)


def _conv_lax(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS
    )


def _conv_transpose_lax(x: Array, kernel: Array, *, stride: int) -> Array:
    return lax.conv_transpose(x, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS)
