"""The primitives of convolutions: three, each linear, whose transposes are each other.

With patches(x) the patch under the kernel at every position, a row for each, they are the three
sides of one trilinear form, <w, patches(x)^T y>:

    conv_forward       y = patches(x) w        a convolution
    conv_data_grad     x = its transpose in x  a transposed convolution
    conv_weight_grad   w = patches(x)^T y      the kernel's gradient of both

So a gradient takes the same fast algorithms, and forward mode, higher derivatives and `vmap` work
as with any other operation. x and y are (batch, height, width, channels); w is a matrix, (patch,
channels of y), float32 as a rule, and is rounded to the images' type. Sums are float32 at least.

The first two add a bias. Either image may have a ReLU mask, an array of its shape: where the mask
is <= 0, the image counts as 0. With x for its own mask, `conv_forward` convolves ReLU(x); on a
cotangent the same mask is the ReLU's derivative. So ReLUs, their derivatives and biases cost no
pass through memory. A dense layer is a convolution of images of one pixel.

On a CPU with a C++ compiler they are computed by `cpp/` (docs/kernels.md), else by `im2col`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jaxdae.kernels import build, im2col
from jaxdae.kernels.conv_shape import ConvShape

Shape = tuple[int, ...]


def convolve(
    primitive: Primitive,
    w: Array,
    x: Array,
    bias: Array | None,
    shape: ConvShape,
    rectify: bool,
    rotated: bool = False,
) -> Array:
    """Binds `conv_forward_p` or `conv_data_grad_p`.

    Args:
      w: (patch, channels of y).
      x: the images that it reads: for `conv_data_grad_p` the forward convolution's y.
      bias: is added to the result's channels, or None.
      rectify: take ReLU(x) in place of x.
      rotated: w lies as a transposed convolution's kernel does, (taps * channels of y, channels of
        x) and with the last tap first.
    """
    mask = lax.stop_gradient(x) if rectify else none()
    masks = (mask, none()) if primitive is conv_forward_p else (none(), mask)
    bias = none() if bias is None else bias
    options = {"shape": shape, "rotated": rotated, "compiled": build.available()}
    return primitive.bind(w, x, bias, *masks, **options)


def none() -> Array:
    """Stands for a bias or a mask where there is none."""
    return jnp.zeros((0,))


def make_primitive(
    name: str,
    function: Callable[..., Any],
    shapes: Callable[..., Any],
    kernel: Callable[..., Any] = lambda *_, **options: None,
    several: bool = False,
) -> Primitive:
    """A primitive that is lowered to a kernel, or to the function where that gives None.

    Args:
      function: what it computes, in JAX's operations; also for `vmap`, and where a program is
        exported, for a file must not depend on these kernels.
      shapes: the shape and the type of the result.
      kernel: the call of the C++ kernel.
      several: the results are several, in a list, and so are `shapes`.
    """
    primitive = Primitive(name)
    primitive.multiple_results = several

    def abstract(*arguments: Any, **options: Any) -> Any:
        def like(shape: Shape, dtype: Any) -> Any:
            return arguments[0].update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False)

        made = shapes(*arguments, **options)
        return [like(*one) for one in made] if several else like(*made)

    def batch(arguments: Sequence[Any], axes: Sequence[Any], **options: Any) -> tuple[Any, Any]:
        out = jax.vmap(partial(function, **options), tuple(axes))(*arguments)
        return out, jax.tree.map(lambda _: 0, out)

    def form(*arrays: Array, **options: Any) -> Any:
        out = kernel(*arrays, **options)
        return function(*arrays, **options) if out is None else out

    def lower(context: Any, *arguments: Any, **options: Any) -> Any:
        exported = context.module_context.lowering_parameters.for_export
        chosen = partial(function if exported else form, **options)
        return mlir.lower_fun(chosen, multiple_results=several)(context, *arguments)

    compiled = functools.cache(lambda **options: jax.jit(partial(form, **options)))
    primitive.def_impl(lambda *arrays, **options: compiled(**options)(*arrays))
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=several))
    mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive


# What they compute, in XLA's operations and in the layout of im2col.


def _forward(w: Array, x: Array, bias: Array, *masks: Array, shape: Any, **options: Any) -> Array:
    w = _straight(w, shape, **options).astype(x.dtype)
    out = im2col.forward(w, _masked(x, masks[0]), shape).astype(x.dtype)
    return _finish(out, bias, masks[1])


def _data_grad(w: Array, y: Array, bias: Array, *masks: Array, shape: Any, **options: Any) -> Array:
    w = _straight(w, shape, **options).astype(y.dtype)
    out = im2col.data_grad(w, _masked(y, masks[1]), shape).astype(y.dtype)
    return _finish(out, bias, masks[0])


def _weight_grad(x: Array, y: Array, _: Array, *masks: Array, shape: Any, **options: Any) -> Array:
    out = im2col.weight_grad(_masked(x, masks[0]), _masked(y, masks[1]), shape)
    return _straight(out, shape, **options)


def _straight(w: Array, shape: ConvShape, *, rotated: bool, **_: Any) -> Array:
    """A matrix that lies rotated, as it lies straight; and back."""
    if not rotated:
        return w
    blocks = w.reshape(shape.taps, -1, w.shape[1])[::-1].transpose(0, 2, 1)
    return blocks.reshape(-1, blocks.shape[2])


def _masked(x: Array, mask: Array) -> Array:
    """Images in the layout of im2col, masked."""
    x = im2col.swap(x)
    return jnp.where(im2col.swap(mask) <= 0, 0, x).astype(x.dtype) if mask.size else x


def _finish(out: Array, bias: Array, mask: Array) -> Array:
    """The same with a bias, and back from that layout."""
    if bias.size:
        out = precise_sum(out, bias[:, None, None, None])
    if mask.size:
        out = jnp.where(im2col.swap(mask) <= 0, 0, out).astype(out.dtype)
    return im2col.swap(out)


def precise_sum(x: Array, *others: Array) -> Array:
    """A sum in x's dtype, computed in float32 at least: so is the sum that a bias's gradient is."""
    precise = jnp.promote_types(x.dtype, jnp.float32)
    return sum((other.astype(precise) for other in others), x.astype(precise)).astype(x.dtype)


def _result(name: str, a: Any, b: Any, shape: ConvShape, rotated: bool) -> tuple[Shape, Any]:
    """The shape and the type of what a primitive makes of its factors."""
    if name == "conv_weight_grad":  # x and y
        inputs, outputs = (b, a) if rotated else (a, b)
        precise = jnp.promote_types(b.dtype, jnp.float32)
        return (shape.taps * inputs.shape[3], outputs.shape[3]), precise
    inner, last = a.shape[0] // shape.taps, a.shape[1]
    if name == "conv_forward":  # w and x
        return (b.shape[0], *shape.y_size, inner if rotated else last), b.dtype
    return (b.shape[0], *shape.x_size, last if rotated else inner), b.dtype  # w and y


def _rows(x: Array) -> Array:
    """Images as rows of numbers.

    What XLA makes of them before and after a kernel is then a long loop with full vectors, where it
    would make one of the last axis that is longer than 1; and of images of one pixel it makes no
    copies, in whose shape it sees two layouts.
    """
    return x.reshape(len(x), -1) if x.ndim == 4 else x


def _known(*arrays: Array) -> bool:
    """True if the kernels take arrays of these shapes: nothing symbolic, nothing empty."""
    return all(isinstance(n, int) and n > 0 for array in arrays for n in array.shape)


def _layer(name: str, function: Callable[..., Array]) -> Primitive:
    """One of the three: bind(factor, factor, bias, x_mask, y_mask, shape=, rotated=, compiled=)."""

    def kernel(
        a: Array,
        b: Array,
        bias: Array,
        *masks: Array,
        shape: ConvShape,
        rotated: bool,
        compiled: bool,
    ) -> Array | None:
        first = b.dtype if name == "conv_weight_grad" else jnp.float32
        if not compiled or b.dtype not in build.TYPES or a.dtype != first or not _known(a, b):
            return None
        # The C++ reads a matrix that lies rotated, but writes its gradient straight.
        turn = rotated and name == "conv_weight_grad"
        result, dtype = _result(name, a, b, shape, rotated and not turn)
        x, y = {
            "conv_forward": (b.shape, result),
            "conv_data_grad": (result, b.shape),
            "conv_weight_grad": (a.shape, b.shape),
        }[name]
        lows = [low for low, _ in shape.padding]
        fields = [x[0], *x[1:3], *shape.kernel, shape.stride, *lows, *y[1:3], x[3], y[3], rotated]
        flat = jax.ShapeDtypeStruct((result[0], math.prod(result[1:])), dtype)
        call = jax.ffi.ffi_call(build.target(name, b.dtype), flat)
        arrays = map(_rows, (a, b, bias.astype(jnp.float32), *masks))
        out = call(*arrays, shape=np.array(fields, np.int64)).reshape(result)
        return _straight(out, shape, rotated=turn)

    def shapes(a: Any, b: Any, *_: Any, shape: ConvShape, rotated: bool, compiled: bool) -> Any:
        return _result(name, a, b, shape, rotated)

    def jvp(primals: Any, tangents: Any, **options: Any) -> Any:
        a, b, _, *masks = primals
        da, db, dbias, *_ = tangents
        bind = partial(primitive.bind, **options)
        out = bind(*primals)
        terms = []
        if not isinstance(da, ad.Zero):
            terms.append(bind(da, b, none(), *masks))
        if not isinstance(db, ad.Zero):
            terms.append(bind(a, db, none(), *masks))
        if not isinstance(dbias, ad.Zero) and dbias.size:
            spread = bias_spread_p.bind(
                dbias, shape=out.shape, dtype=out.dtype, compiled=options["compiled"]
            )
            mask = masks[1 if name == "conv_forward" else 0]
            masked = jnp.where(mask <= 0, 0, spread).astype(out.dtype) if mask.size else spread
            terms.append(masked)
        return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)

    primitive = make_primitive(name, function, shapes, kernel)
    ad.primitive_jvps[primitive] = jvp
    return primitive


conv_forward_p = _layer("conv_forward", _forward)
conv_data_grad_p = _layer("conv_data_grad", _data_grad)
conv_weight_grad_p = _layer("conv_weight_grad", _weight_grad)


def _transpose(primitive: Primitive, first: Callable[..., Any], second: Callable[..., Any]) -> None:
    """Sets what a cotangent gives to either factor, from the other one."""

    def rule(g: Any, a: Any, b: Any, bias: Any, *masks: Any, **options: Any) -> list[Any]:
        given: list[Any] = [None] * (3 + len(masks))
        if not isinstance(g, ad.Zero):
            which, other = (0, b) if ad.is_undefined_primal(a) else (1, a)
            out = (first, second)[which](g, other, none(), *masks, **options)
            given[which] = out.astype((a, b)[which].aval.dtype)
        return given

    ad.primitive_transposes[primitive] = rule


def _other_first(primitive: Primitive) -> Callable[..., Any]:
    return lambda g, other, *rest, **options: primitive.bind(other, g, *rest, **options)


# forward(w, x) is a y, data_grad(w, y) an x, weight_grad(x, y) a w.
_transpose(conv_forward_p, _other_first(conv_weight_grad_p), _other_first(conv_data_grad_p))
_transpose(conv_data_grad_p, conv_weight_grad_p.bind, _other_first(conv_forward_p))
_transpose(conv_weight_grad_p, conv_data_grad_p.bind, conv_forward_p.bind)


# A bias at every pixel, and its transpose, the bias gradient.


def _bias_spread(bias: Array, *, shape: Shape, dtype: Any, compiled: bool) -> Array:
    return jnp.broadcast_to(bias, shape).astype(dtype)


def _bias_grad(y: Array, *, dtype: Any, compiled: bool) -> Array:
    return y.astype(jnp.promote_types(y.dtype, dtype)).sum((0, 1, 2)).astype(dtype)


def _bias_grad_kernel(y: Array, *, dtype: Any, compiled: bool) -> Array | None:
    if not compiled or y.dtype not in build.TYPES or dtype != jnp.float32 or not _known(y):
        return None
    result = jax.ShapeDtypeStruct(y.shape[3:], dtype)
    return jax.ffi.ffi_call(build.target("conv_bias_grad", y.dtype), result)(_rows(y))


bias_spread_p = make_primitive(
    "bias_spread", _bias_spread, lambda _, shape, dtype, compiled: (shape, dtype)
)
bias_grad_p = make_primitive(
    "bias_grad", _bias_grad, lambda y, dtype, compiled: (y.shape[3:], dtype), _bias_grad_kernel
)


def _spread_transpose(g: Any, bias: Any, *, compiled: bool, **_: Any) -> list[Any]:
    return [bias_grad_p.bind(g, dtype=bias.aval.dtype, compiled=compiled)]


def _grad_transpose(g: Any, y: Any, *, compiled: bool, **_: Any) -> list[Any]:
    options = {"shape": y.aval.shape, "dtype": y.aval.dtype, "compiled": compiled}
    return [bias_spread_p.bind(g, **options)]


ad.deflinear2(bias_spread_p, _spread_transpose)
ad.deflinear2(bias_grad_p, _grad_transpose)
