"""Convolutions, transposed ones and dense layers, lowered to what is fast on each platform.

`conv` and `conv_transpose` compute what `jax.lax.conv_general_dilated` and
`jax.lax.conv_transpose` compute, for 2-d images with channels last (NHWC images, HWIO kernels).
GPUs and TPUs get exactly those two. XLA's CPU backend has no fast path for the gradients of a
strided or dilated convolution, so on a CPU both go to the kernels of
`jaxdae.kernels.primitives`, where there is a compiler for them, and otherwise become matrix
products around two linear maps:

    unfold (im2col)    the patch under the kernel at every position
    fold   (col2im)    the adjoint: every patch added back where it was cut out

With the kernel as a matrix W with a row for each number in a patch, these are the three sides of
one trilinear form, <W, unfold(x) y^T>, and each is the derivative of another:

    gather       W^T unfold(x)     a convolution, and the input gradient of a transposed one
    scatter      fold(W y)         a transposed convolution, and the input gradient of a plain one
    correlate    unfold(x) y^T     the kernel gradient of both

Each is a JAX primitive, bilinear, with the other two as its transposes: so a gradient takes the
same fast forms, forward mode, higher derivatives and `vmap` work as usual, and nothing is scattered
or multiplied by a zero that dilation put there. (Differentiated as it is written, `fold` is slow,
and `custom_vjp` would give up forward mode.)

Inside these, images lie with channels outermost and the batch innermost: (channels, height, width,
batch). A shifted image is then a copy of whole rows, pads are cheap, and all products run along
their operands' rows, which is what XLA's CPU kernels are fastest at. What stands between two
convolutions goes through `across`, which does it in that layout: so the transpositions at the
borders meet, and XLA cancels them. (It does not move them across a relu by itself, but where it
can give the arrays another layout; with few channels or many images it copies, at twice the time.)

`fold` is written by phases: output positions with the same remainder modulo the stride receive the
same taps, so each phase is a sum of shifted arrays and the phases interleave by one reshape.

At stride 1 a convolution is also a transposed one with the kernel rotated, so the form with the
smaller patches is taken: `fold` where there are fewer channels out than in, else `unfold`.

In bfloat16 the products take half the time, and the maps move half the bytes. XLA would convert
what they move to float32 and back, so they move it as integers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from jaxdae.kernels import primitives as native

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
      bias: what is added to each output, summed in float32 at least, as its gradient is.
      stride: the step between outputs, the same along both axes.
      padding: "SAME", "VALID", or a (low, high) pair for each axis.
      rectify: take relu(x) instead of x.

    Returns:
      `ceil(height / stride)` by `ceil(width / stride)` outputs under "SAME", in x's dtype.
      Products are accumulated in float32 where x is narrower.
    """
    plain = _plain(partial(_conv_lax, stride=stride, padding=padding), rectify)
    fast = partial(_conv_matmul, stride=stride, padding=padding, rectify=rectify)
    arguments = (x, kernel) if bias is None else (x, kernel, bias)
    return lax.platform_dependent(*arguments, cpu=_sized(x, fast, plain), default=plain)


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
      bias, rectify: as of `conv`.
      stride: the factor by which both axes grow.

    Returns:
      Images of `stride` times the height and width, in x's dtype.
    """
    plain = _plain(partial(_conv_transpose_lax, stride=stride), rectify)
    fast = partial(_conv_transpose_matmul, stride=stride, rectify=rectify)
    arguments = (x, kernel) if bias is None else (x, kernel, bias)
    return lax.platform_dependent(*arguments, cpu=_sized(x, fast, plain), default=plain)


def _sized(x: Array, fast: Callable[..., Array], plain: Callable[..., Array]) -> Callable:
    """The fast form for images of a known size; the plain one where the size is symbolic."""
    return fast if all(isinstance(side, int) for side in x.shape[1:3]) else plain


def dense(
    x: Float[Array, "batch *inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"],
    *,
    rectify: bool = False,
) -> Float[Array, "batch outputs"]:
    """A fully connected layer: all that comes of an example times a matrix, and a bias added.

    Args:
      x: vectors, or images, which are taken as vectors; any float dtype.
      kernel: the matrix. It is rounded to x's dtype; on a CPU its gradient is not.
      bias: as of `conv`.
      rectify: take relu(x) instead of x.

    Returns:
      Vectors in x's dtype, accumulated in float32 at least.
    """
    return lax.platform_dependent(
        x,
        kernel,
        bias,
        cpu=partial(_dense_matmul, rectify=rectify),
        default=_plain(_dense_lax, rectify),
    )


def across(
    function: Callable[..., Array], *images: Float[Array, "batch height width channels"]
) -> Array:
    """Applies a function to images in the layout that this platform's convolutions use inside.

    Between two convolutions the transpositions then meet, and cancel.

    Args:
      function: one that treats all pixels alike, or knows that height and width are the axes 1
        and 2, but does not ask which of the axes 0 and 3 is the batch and which the channels.
      images: its arguments; axes of length 1 broadcast, so a bias is `bias[None, None, None]`.
    """
    if native.available():
        return function(*images)
    return lax.platform_dependent(*images, cpu=partial(_swapped, function), default=function)


def mix(
    weights: Float[Array, "batch n"],
    images: Float[Array, "n+1 height width channels"],
    bias: Float[Array, " channels"],
) -> Float[Array, "batch height width channels"]:
    """Weighted sums of images, of which the last has no weight, and a bias: in weights' dtype."""
    # Chosen here: what is traced of a function that has a name is kept, whatever it went by.
    form = _mix_lax if native.available() else _mix_matmul
    return lax.platform_dependent(weights, images, bias, cpu=form, default=_mix_lax)


def precise_sum(x: Array, *others: Array) -> Array:
    """A sum in x's dtype, computed in float32 at least: so is the sum that a bias's gradient is."""
    precise = jnp.promote_types(x.dtype, jnp.float32)
    return sum((other.astype(precise) for other in others), x.astype(precise)).astype(x.dtype)


def unfold(x: Float[Array, "in height width batch"], geometry: Geometry) -> Array:
    """The patch under the kernel at every position (im2col): (patch, rows, columns, batch).

    A patch is in kernel order, channels last, as the rows of `kernel.reshape(-1, out)` are.
    """
    (kh, kw), stride = geometry.kernel, geometry.stride
    rows, columns = geometry.grid
    channels, _, _, batch = x.shape
    dtype = x.dtype
    if dtype.itemsize == 2:
        x = lax.bitcast_convert_type(x, jnp.uint16)
    padding = ((0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0))
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


def fold(patches: Float[Array, "patch rows columns batch"], geometry: Geometry) -> Array:
    """Every patch added back to where it was cut out (col2im), the adjoint of `unfold`."""
    stride, zero = geometry.stride, jnp.zeros((), patches.dtype)
    height, width = geometry.image
    size = tuple(-(-side // stride) for side in geometry.image)  # of one phase
    channels = patches.shape[0] // (geometry.kernel[0] * geometry.kernel[1])
    batch = patches.shape[3]

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
                lax.slice_in_dim(patches, tap * channels, (tap + 1) * channels),
                zero,
                ((0, 0, 0), down, right, (0, 0, 0)),
            )
            for i, down in taps(0, row)
            for j, right in taps(1, column)
            for tap in [i * geometry.kernel[1] + j]
        ]
        # A stride larger than the kernel leaves phases that no tap reaches.
        return sum(terms[1:], terms[0]) if terms else jnp.zeros((channels, *size, batch))

    if stride == 1:
        return phase(0, 0)
    strides = range(stride)
    rows = [jnp.stack([phase(row, column) for column in strides], axis=3) for row in strides]
    out = jnp.stack(rows, axis=2)  # channels, rows, phase, columns, phase, batch
    out = out.reshape(channels, size[0] * stride, size[1] * stride, batch)
    return out[:, :height, :width].astype(patches.dtype)


def _matmul(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """A product of matrices along one axis of each, accumulated in float32 at least."""
    precise = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=precise
    )


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _gather(matrix: Array, x: Array, *, geometry: Geometry) -> Array:
    patches = _flat(unfold(x, geometry))
    matrix = matrix.astype(x.dtype)
    # Transposed by itself: a product with a transposed first operand is slow.
    columns = lax.optimization_barrier(matrix.T.reshape(-1)).reshape(matrix.shape[::-1])
    out = _matmul(columns, patches, (1, 0))
    return out.astype(x.dtype).reshape(matrix.shape[1], *geometry.grid, x.shape[3])


def _scatter(matrix: Array, y: Array, *, geometry: Geometry) -> Array:
    patches = _matmul(matrix.astype(y.dtype), _flat(y), (1, 0))
    return fold(patches.reshape(len(matrix), *y.shape[1:]), geometry).astype(y.dtype)


def _correlate(x: Array, y: Array, *, geometry: Geometry) -> Array:
    patches, y = _flat(unfold(x, geometry)), _flat(y)
    if len(patches) < len(y):  # the longer one first is faster
        return _matmul(y, patches, (1, 1)).T
    return _matmul(patches, y, (1, 1))


def _bilinear_primitive(name: str, function: Callable[..., Array]) -> Primitive:
    """Makes `function` one operation to JAX's transformations."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames="geometry"))

    def shape(a: Any, b: Any, *, geometry: Geometry) -> Any:
        out = jax.eval_shape(partial(function, geometry=geometry), a, b)
        return b.update(shape=out.shape, dtype=out.dtype)

    def batch(arguments: Any, axes: Any, *, geometry: Geometry) -> tuple[Array, int]:
        return jax.vmap(partial(function, geometry=geometry), tuple(axes))(*arguments), 0

    primitive.def_abstract_eval(shape)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive


gather_p = _bilinear_primitive("gather", _gather)
scatter_p = _bilinear_primitive("scatter", _scatter)
correlate_p = _bilinear_primitive("correlate", _correlate)
ad.defbilinear(
    gather_p,
    lambda g, w, x, **geometry: correlate_p.bind(x, g, **geometry).astype(w.aval.dtype),
    lambda g, w, x, **geometry: scatter_p.bind(w, g, **geometry),
)
ad.defbilinear(
    scatter_p,
    lambda g, w, y, **geometry: correlate_p.bind(g, y, **geometry).astype(w.aval.dtype),
    lambda g, w, y, **geometry: gather_p.bind(w, g, **geometry),
)
ad.defbilinear(
    correlate_p,
    lambda g, x, y, **geometry: scatter_p.bind(g, y, **geometry),
    lambda g, x, y, **geometry: gather_p.bind(g, x, **geometry),
)


def _product(
    name: str, matrix: Array, x: Array, bias: Array | None, geometry: Geometry, rectify: bool
) -> Array:
    """A "gather" or a "scatter" of images, by the C++ kernels where they are."""
    if native.available() and native.suits(x, matrix):
        return native.product(name, matrix, x, bias, geometry, rectify)
    if rectify:
        x = _swapped(jax.nn.relu, x)
    primitive = {"gather": gather_p, "scatter": scatter_p}[name]
    out = _swap(primitive.bind(matrix, _swap(x), geometry=geometry))
    return out if bias is None else _swapped(precise_sum, out, bias[None, None, None])


def _conv_matmul(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    stride: int,
    padding: Padding,
    rectify: bool,
) -> Array:
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
        mirrored_geometry = Geometry(geometry.grid, window, 1, mirrored)
        return _matmul_fold(x, kernel, bias, mirrored_geometry, rectify)
    matrix = kernel.reshape(kh * kw * inputs, outputs)
    return _product("gather", matrix, x, bias, geometry, rectify)


def _conv_transpose_matmul(
    x: Array, kernel: Array, bias: Array | None = None, *, stride: int, rectify: bool
) -> Array:
    image = (x.shape[1] * stride, x.shape[2] * stride)
    if stride == 1 and kernel.shape[2] <= kernel.shape[3]:
        padding = transpose_padding(kernel, 1)
        return _conv_matmul(x, kernel, bias, stride=1, padding=padding, rectify=rectify)
    # lax pads the dilated input by `low` in front; scattered, that crops k - 1 - low pixels.
    crops = tuple(
        (k - 1 - low, k - 1 - high)
        for k, (low, high) in zip(kernel.shape[:2], transpose_padding(kernel, stride), strict=True)
    )
    geometry = Geometry(image, kernel.shape[:2], stride, crops)
    return _matmul_fold(x, kernel, bias, geometry, rectify)


def transpose_padding(kernel: Any, stride: int) -> list[tuple[int, int]]:
    """What `lax.conv_transpose` calls "SAME": (low, high) padding of the dilated input."""
    totals = [k + stride - 2 for k in kernel.shape[:2]]
    lows = [
        k - 1 if stride > k - 1 else -(-total // 2)
        for k, total in zip(kernel.shape[:2], totals, strict=True)
    ]
    return [(low, total - low) for low, total in zip(lows, totals, strict=True)]


def _matmul_fold(
    x: Array, kernel: Array, bias: Array | None, geometry: Geometry, rectify: bool
) -> Array:
    """A scatter by a kernel rotated by 180 degrees, its last two axes exchanged."""
    matrix = kernel.reshape(-1, kernel.shape[3])
    if native.available() and native.suits(x, matrix):  # which reads it as it lies
        return native.product("scatter", matrix, x, bias, geometry, rectify, turned=True)
    matrix = kernel[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, kernel.shape[2])
    return _product("scatter", matrix, x, bias, geometry, rectify)


def _plain(form: Callable[..., Array], rectify: bool) -> Callable[..., Array]:
    """A form with the relu before it and the bias after it."""

    def layer(x: Array, kernel: Array, bias: Array | None = None) -> Array:
        out = form(jax.nn.relu(x) if rectify else x, kernel)
        return out if bias is None else precise_sum(out, bias)

    return layer


def _swap(x: Array) -> Array:
    """Batch first and channels last to the reverse, and back."""
    return x.transpose(3, 1, 2, 0)


def _swapped(function: Callable[..., Array], *images: Array) -> Array:
    """A function of images, in the layout of the forms made of XLA's operations."""
    return _swap(function(*map(_swap, images)))


def _dense_lax(x: Array, kernel: Array) -> Array:
    return x.reshape(x.shape[0], prod(x.shape[1:])) @ kernel.astype(x.dtype)


def _dense_matmul(x: Array, kernel: Array, bias: Array, *, rectify: bool) -> Array:
    if native.available() and native.suits(x, kernel):
        # Vectors are images of one pixel.
        x = x.reshape(x.shape[0], 1, 1, prod(x.shape[1:]))
        geometry = Geometry((1, 1), (1, 1), 1, ((0, 0), (0, 0)))
        return native.product("gather", kernel, x, bias, geometry, rectify)[:, 0, 0]
    if rectify:
        x = jax.nn.relu(x) if x.ndim != 4 else _swapped(jax.nn.relu, x)
    return precise_sum(_dense_lax(x, kernel), bias)


def _mix_matmul(weights: Array, images: Array, bias: Array) -> Array:
    images = _swap(images.astype(weights.dtype))
    out = _matmul(images.reshape(-1, images.shape[3]), _and_one(weights), (1, 1))
    out = out.astype(weights.dtype).reshape(*images.shape[:3], len(weights))
    return _swap(precise_sum(out, bias[:, None, None, None]))


def _mix_lax(weights: Array, images: Array, bias: Array) -> Array:
    everywhere = jnp.broadcast_to(bias, images.shape[1:]).reshape(-1)
    out = dense(_and_one(weights), _flat(images), everywhere)
    return out.reshape(len(out), *images.shape[1:])


def _and_one(weights: Array) -> Array:
    return jnp.pad(weights, ((0, 0), (0, 1)), constant_values=1)


def _conv_lax(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    kernel = kernel.astype(x.dtype)
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS
    )


def _conv_transpose_lax(x: Array, kernel: Array, *, stride: int) -> Array:
    kernel = kernel.astype(x.dtype)
    return lax.conv_transpose(x, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS)
