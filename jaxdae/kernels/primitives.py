"""Layers, Adam and noise on a CPU by kernels of our own, where there is a C++ compiler.

`kernels/cpp` is compiled for the processor at hand when one of them is first traced on a CPU, by
`c++`, `g++` or `clang++`, in five to fifteen seconds; the library is kept in the user's cache
folder.
Without a compiler `jaxdae.kernels.conv` makes do with forms of XLA's operations, and training has
half to seven tenths of the speed in float32, a third to two thirds in bfloat16, by the processor
(`python -m benchmarks.throughput --operations`).
Which of the two it is decides over roundings and over nothing else; how many threads there are,
over nothing.

For layers there are three primitives, the sides of one trilinear form <W, unfold(x) y^T> in the
words of `jaxdae.kernels.conv`, of images with channels last. None ever stores the patches:

    gather       y = unfold(x) W + bias       a convolution
    scatter      x = fold(y W^T) + bias       a transposed convolution
    correlate    W = unfold(x)^T y            the kernel's gradient of both

In float32 a kernel of 3 by 3 at stride 2, on images of even sides and between multiples of 32
channels, takes 25 products for 36, by Winograd's minimal filtering (Winograd, "Arithmetic
Complexity of Computations", 1980; Lavin and Gray, 2016, arXiv:1509.09308): of two outputs beside
each other, the odd tap gives two products and the two even taps three, not four. All factors are
sums and differences of two or four numbers, so little is lost: `tests/kernels/` holds the
error beside float64 to half of 2**-24 times the root of the number of terms. What is infinite or
NaN reaches the neighbours in its pair too. Of 64 positions or fewer, all images together, a matrix
that lies straight for it is read in place instead: packing it would take longer than the products.
In bfloat16 the same 25 do, of 513 positions or more, but for tiles (AMX): a sum of factors is made
in float32 and rounded once. `tests/kernels/` holds the error beside float64 to 2**-7.75 of
the result's root mean square, some twice what rounding the result costs, and to neither side. A
processor without products of bfloat16 takes the 25 too: it widens what it reads and rounds what it
writes, and does not round these kernels.

Either image may have a gate, an array of its shape: where a gate is at most 0, the image counts as
0. With x itself for its gate, `gather` is a convolution of relu(x); the derivative of a relu is the
same gate on a cotangent. So relus, their derivatives and biases cost no pass through the memory. A
dense layer is a convolution of images of one pixel.

Each primitive is linear in either factor and in the bias, and its transposes are the other two: as
with any other operation, forward mode, higher derivatives and `vmap` work. So they do for `adam`.
"""

import ctypes
import functools
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxlib.version import __version__ as jaxlib_version
from jaxtyping import Array, Float, Key

from jaxdae.files import cache_folder
from jaxdae.random import unrolled

SOURCES = Path(__file__).parent / "cpp"
OPTIONS = (
    *("-std=c++17", "-O2", "-march=native", "-fno-math-errno", "-fno-strict-aliasing"),
    *("-fPIC", "-shared", "-w"),
)
TYPES = (jnp.float32, jnp.bfloat16)
LIBRARIES = {  # each with its source, its options and its handlers
    **{
        name: ("layers.cc", (f"-DELEMENT={element}",), ("conv_forward", "conv_data_grad", "conv_weight_grad", "conv_bias_grad"))
        for name, element in (("float32", "float"), ("bfloat16", "bfloat16"))
    },
    "adam_normal": ("adam_normal.cc", (), ("adam", "normal")),
}
_wanted = ContextVar("wanted", default=True)
_lock = threading.Lock()


def available() -> bool:
    """Whether the kernels can be used here, which they are if so; compiles them if need be."""
    return _wanted.get() and jax.default_backend() == "cpu" and _loaded()


@contextmanager
def without() -> Iterator[None]:
    """Traces what follows without the kernels: for programs that are to run elsewhere.

    What `jax.jit` has traced before, it does not trace again.
    """
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)


def suits(x: Array, matrix: Array) -> bool:
    """Whether the kernels take arrays of these types, and of shapes that are known."""
    known = all(isinstance(size, int) and size > 0 for size in (*x.shape, *matrix.shape))
    return known and x.dtype in TYPES and matrix.dtype == jnp.float32


def product(
    name: str,
    matrix: Array,
    x: Array,
    bias: Array | None,
    geometry: Any,
    rectify: bool,
    turned: bool = False,
) -> Array:
    """A "gather" or a "scatter" of images, or of what a relu makes of them.

    Args:
      matrix: (patch, grid channels), float32.
      x: the images, or for a scatter the grid, (batch, height, width, channels).
      bias: added to the result's channels, or None.
      geometry: a `jaxdae.kernels.conv.Geometry`.
      rectify: take relu(x) instead of x.
      turned: the matrix lies as a transposed convolution's kernel does, (taps * grid channels,
        image channels) and with the last tap first.

    Returns:
      A gather's grid, (batch, *geometry.grid, grid channels), or a scatter's images, (batch,
      *geometry.image, image channels), in x's dtype.
    """
    gate = lax.stop_gradient(x) if rectify else none()
    gates = (gate, none()) if name == "gather" else (none(), gate)
    primitive = {"gather": gather_p, "scatter": scatter_p}[name]
    bias = none() if bias is None else bias
    return primitive.bind(matrix, x, bias, *gates, geometry=geometry, turned=turned)


def none() -> Array:
    """What stands for a bias or a gate where there is none."""
    return jnp.zeros((0,))


def tiled(dtype: Any) -> bool:
    """Whether the kernels multiply this type on tiles (AMX), several times as fast as vectors."""
    return available() and dtype in TYPES and bool(_load()[jnp.dtype(dtype).name].jaxdae_uses_amx())


def _loaded() -> bool:
    with _lock:  # of several threads one compiles
        return bool(_load())


@functools.cache
def _load() -> dict[str, ctypes.CDLL]:
    """The libraries, by type, their kernels registered; empty if they cannot be had."""
    try:
        with ThreadPoolExecutor() as pool:
            libraries = dict(zip(LIBRARIES, pool.map(_open, LIBRARIES), strict=True))
    except (OSError, subprocess.SubprocessError):
        return {}
    for key, library in libraries.items():
        for name in LIBRARIES[key][2]:
            handler = jax.ffi.pycapsule(getattr(library, f"jaxdae_{name}"))
            target = f"jaxdae_{name}" if key == "adam_normal" else _target(name, key)
            jax.ffi.register_ffi_target(target, handler, platform="cpu")
    return libraries


def _target(name: str, dtype: Any) -> str:
    """What a kernel goes by, for images of this type."""
    return f"jaxdae_{name}_{jnp.dtype(dtype).name}"


def _open(name: str) -> ctypes.CDLL:
    """A library; one that is damaged is made anew."""
    path = _build(name)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink()
        return ctypes.CDLL(str(_build(name)))


def _build(name: str) -> Path:
    """A library, from the cache or compiled.

    Raises:
      OSError, subprocess.SubprocessError: there is no compiler, or it cannot compile this.
    """
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler")
    # What a compiler defines for a processor says all that matters of both.
    ask = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    defined = subprocess.run(ask, capture_output=True, check=True, timeout=60).stdout
    headers = jax.ffi.include_dir()
    source, own, _ = LIBRARIES[name]
    options = (*OPTIONS, *own)
    words = " ".join([jaxlib_version, source, *options]).encode()  # whose headers they are
    files = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    digest = hashlib.sha256(b"\0".join([*files, defined, words])).hexdigest()
    path = cache_folder() / "kernels" / f"{digest[:32]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            build = [compiler, *options, f"-I{headers}", str(SOURCES / source), "-o", str(made)]
            subprocess.run(build, capture_output=True, check=True, timeout=600)
            made.replace(path)
    return path


def _shape(name: str, a: Any, b: Any, geometry: Any, turned: bool) -> tuple[tuple[int, ...], Any]:
    """The shape and the type of what a primitive makes of its factors."""
    taps = geometry.kernel[0] * geometry.kernel[1]
    if name == "correlate":  # of images and grids
        channels, outputs = (b, a) if turned else (a, b)
        return (taps * channels.shape[3], outputs.shape[3]), jnp.float32
    inner, last = a.shape[0] // taps, a.shape[1]
    if name == "gather":  # of a matrix and images
        return (b.shape[0], *geometry.grid, inner if turned else last), b.dtype
    return (b.shape[0], *geometry.image, last if turned else inner), b.dtype  # and grids


def _turn(matrix: Array, geometry: Any) -> Array:
    """A matrix as it lies turned, and back."""
    taps = geometry.kernel[0] * geometry.kernel[1]
    blocks = matrix.reshape(taps, -1, matrix.shape[1])[::-1].transpose(0, 2, 1)
    return blocks.reshape(-1, blocks.shape[2])


# What the primitives compute, in JAX's operations: for `vmap`, and where a program is exported.


def _gather(
    matrix: Array, x: Array, bias: Array, *gates: Array, geometry: Any, turned: bool = False
) -> Array:
    matrix = _turn(matrix, geometry) if turned else matrix
    x, narrow = _gated(x, gates[0]), x.dtype
    kernel = matrix.reshape(*geometry.kernel, x.shape[3], -1).astype(narrow)
    wide = jnp.promote_types(narrow, jnp.float32)
    out: Array = lax.conv_general_dilated(
        x.astype(wide),
        kernel.astype(wide),
        (geometry.stride, geometry.stride),
        geometry.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return _gated((out + bias if bias.size else out).astype(narrow), gates[1])


def _scatter(
    matrix: Array, y: Array, bias: Array, *gates: Array, geometry: Any, turned: bool = False
) -> Array:
    matrix = _turn(matrix, geometry) if turned else matrix
    shape, _ = _shape("scatter", matrix, y, geometry, False)
    wide = jnp.promote_types(y.dtype, jnp.float32)
    rounded = matrix.astype(y.dtype).astype(wide)

    def adjoint(x: Array) -> Array:
        return _gather(rounded, x, none(), none(), none(), geometry=geometry)

    transpose = jax.linear_transpose(adjoint, jax.ShapeDtypeStruct(shape, wide))
    (out,) = transpose(_gated(y, gates[1]).astype(wide))
    return _gated((out + bias if bias.size else out).astype(y.dtype), gates[0])


def _correlate(
    x: Array, y: Array, bias: Array, *gates: Array, geometry: Any, turned: bool = False
) -> Array:
    shape, wide = _shape("correlate", x, y, geometry, False)
    x, y = (_gated(*both).astype(wide) for both in zip((x, y), gates, strict=True))

    def adjoint(matrix: Array) -> Array:
        return _gather(matrix, x, none(), none(), none(), geometry=geometry)

    (out,) = jax.linear_transpose(adjoint, jax.ShapeDtypeStruct(shape, wide))(y)
    return _turn(out, geometry) if turned else out


def _gated(x: Array, gate: Array) -> Array:
    return jnp.where(gate <= 0, 0, x).astype(x.dtype) if gate.size else x


def _spread(bias: Array, *, shape: tuple[int, ...], dtype: Any) -> Array:
    """A bias at every pixel."""
    return jnp.broadcast_to(bias, shape).astype(dtype)


def _total(x: Array, *, dtype: Any) -> Array:
    """Its transpose: sums over the pixels, in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, dtype)).sum((0, 1, 2)).astype(dtype)


def _primitive(
    name: str,
    function: Callable[..., Any],
    shapes: Callable[..., Any],
    kernel: Callable[..., Any] = lambda *_, **options: None,
    several: bool = False,
) -> Primitive:
    """A primitive that is lowered to a kernel, or to the function where that gives None.

    Args:
      shapes: the shape and the type of the result, which tracing the function would tell later.
      several: the results are several, in a list, and so are `shapes`.
    """
    primitive = Primitive(f"native_{name}")
    primitive.multiple_results = several

    def abstract(*arguments: Any, **options: Any) -> Any:
        def like(shape: tuple[int, ...], dtype: Any) -> Any:
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
    mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive


def _rows(x: Array) -> Array:
    """Images as rows of numbers.

    What XLA makes of them before and after a kernel is then a long loop with full vectors, where it
    would make one of the last axis that is longer than 1; and of images of one pixel it makes no
    copies, in whose shape it sees two layouts.
    """
    return x.reshape(len(x), -1) if x.ndim == 4 else x


def _sizes(
    image: tuple[int, ...], grid: tuple[int, ...], geometry: Any, turned: bool
) -> np.ndarray:
    """The fields of kernels/cpp's Geometry."""
    lows = [low for low, _ in geometry.padding]
    batch, channels, outputs = image[0], image[3], grid[3]
    sizes = [*geometry.kernel, geometry.stride, *lows, *grid[1:3], channels, outputs, turned]
    return np.array([batch, *image[1:3], *sizes], np.int64)


def _side(name: str, function: Callable[..., Array]) -> Primitive:
    """One of the three: bind(factor, factor, bias, gate_x, gate_y, geometry=..., turned=...)."""

    def kernel(a: Array, b: Array, *others: Array, geometry: Any, turned: bool) -> Array:
        shape, dtype = _shape(name, a, b, geometry, turned)
        image, grid = {
            "gather": (b.shape, shape),
            "scatter": (shape, b.shape),
            "correlate": (a.shape, b.shape),
        }[name]
        flat = (shape[0], math.prod(shape[1:]))
        call = jax.ffi.ffi_call(_target({"gather":"conv_forward","scatter":"conv_data_grad","correlate":"conv_weight_grad"}[name], b.dtype), jax.ShapeDtypeStruct(flat, dtype))
        sizes = _sizes(image, grid, geometry, turned)
        return call(*map(_rows, (a, b, *others)), shape=sizes).reshape(shape)

    def jvp(primals: Any, tangents: Any, **options: Any) -> Any:
        a, b, _, *gates = primals
        da, db, dbias, *_ = tangents
        bind = partial(primitive.bind, **options)
        out = bind(*primals)
        terms = []
        if not isinstance(da, ad.Zero):
            terms.append(bind(da, b, none(), *gates))
        if not isinstance(db, ad.Zero):
            terms.append(bind(a, db, none(), *gates))
        if not isinstance(dbias, ad.Zero) and dbias.size:
            spread = spread_p.bind(dbias, shape=out.shape, dtype=out.dtype)
            terms.append(_gated(spread, gates[1 if name == "gather" else 0]))
        return out, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(out)

    def shapes(a: Any, b: Any, *_: Any, **options: Any) -> tuple[tuple[int, ...], Any]:
        return _shape(name, a, b, **options)

    primitive = _primitive(name, function, shapes, kernel)
    ad.primitive_jvps[primitive] = jvp
    return primitive


gather_p, scatter_p = _side("gather", _gather), _side("scatter", _scatter)
correlate_p = _side("correlate", _correlate)
spread_p = _primitive("spread", _spread, lambda _, shape, dtype: (shape, dtype))


def _total_kernel(x: Array, *, dtype: Any) -> Array | None:
    if x.dtype not in TYPES or dtype != jnp.float32:
        return None
    result = jax.ShapeDtypeStruct(x.shape[3:], dtype)
    return jax.ffi.ffi_call(_target("conv_bias_grad", x.dtype), result)(_rows(x))


total_p = _primitive("total", _total, lambda x, dtype: (x.shape[3:], dtype), _total_kernel)
ad.deflinear2(spread_p, lambda g, bias, **_: [total_p.bind(g, dtype=bias.aval.dtype)])
ad.deflinear2(total_p, lambda g, x, **_: [spread_p.bind(g, shape=x.aval.shape, dtype=x.aval.dtype)])


def _transpose(primitive: Primitive, first: Callable[..., Any], second: Callable[..., Any]) -> None:
    """Says what a cotangent gives to either factor, from the other one."""

    def rule(g: Any, a: Any, b: Any, bias: Any, *gates: Any, **options: Any) -> list[Any]:
        given: list[Any] = [None] * (3 + len(gates))
        if not isinstance(g, ad.Zero):
            which, other = (0, b) if ad.is_undefined_primal(a) else (1, a)
            out = (first, second)[which](g, other, none(), *gates, **options)
            given[which] = out.astype((a, b)[which].aval.dtype)
        return given

    ad.primitive_transposes[primitive] = rule


def _turned(primitive: Primitive) -> Callable[..., Any]:
    return lambda g, other, *rest, **options: primitive.bind(other, g, *rest, **options)


# gather(W, x) is a y, scatter(W, y) an x, correlate(x, y) a W.
_transpose(gather_p, _turned(correlate_p), _turned(scatter_p))
_transpose(scatter_p, correlate_p.bind, _turned(gather_p))
_transpose(correlate_p, scatter_p.bind, gather_p.bind)


# Adam, for which XLA makes three loops a leaf, each of which computes the averages again.


class AdamState(NamedTuple):
    """What a step of Adam changes.

    Fields:
      mean, square: of each leaf, the averages of its gradient and of the square.
      cross, cross_square: of each centred pair, the averages of `jaxdae.optimizers.centered`: a
        kernel's shape without the last axis, and a number.
    """

    mean: list[Array]
    square: list[Array]
    cross: list[Array]
    cross_square: list[Array]


def adam(
    scales: Sequence[Array | float],
    gradient: Sequence[Array],
    state: AdamState,
    pairs: Sequence[tuple[int, int]] = (),
    params: Sequence[Array] = (),
) -> tuple[list[Array], AdamState]:
    """A step of Adam's for all leaves at once.

        mean = keep * mean + (1 - keep) * gradient
        square = keep_square * square + (1 - keep_square) * gradient**2
        scale = sqrt(of_square * square) + epsilon
        update = rate * (of_mean * mean + of_gradient * gradient) / scale

    Args:
      scales: keep, keep_square, of_mean, of_gradient, of_square, epsilon, rate (below 0, for a step
        down), and what the averages of the pairs keep.
      gradient: a list of leaves of any shapes; all here is float32.
      pairs: which leaves are a kernel and its bias, to go in centred coordinates
        (`jaxdae.optimizers.centered`).
      params: leaves of the same shapes, to which the updates are added, or nothing.

    Returns:
      The updates, or the parameters with them; and the state.
    """
    numbers = jnp.stack([jnp.asarray(scale, jnp.float32) for scale in scales])
    given = (*gradient, *jax.tree.leaves(state), *params)
    made = iter(adam_p.bind(numbers, *given, pairs=tuple(pairs), added=bool(params)))
    update, *averages = ([next(made) for _ in part] for part in (gradient, *state))
    return update, AdamState(*averages)


def _per_kind(leaves: Sequence[Any], pairs: Sequence[Any], added: bool) -> int:
    """How many of them are gradients: as many as means, squares and, if given, parameters."""
    return (len(leaves) - 2 * len(pairs)) // (4 if added else 3)


def _adam(
    scales: Array, *leaves: Array, pairs: tuple[tuple[int, int], ...], added: bool = False
) -> list[Array]:
    keep, keep_square, of_mean, of_gradient, of_square, epsilon, rate, keep_cross = scales
    count = _per_kind(leaves, pairs, added)
    gradient, mean, square = (list(leaves[i * count : (i + 1) * count]) for i in range(3))
    rest = leaves[3 * count :]
    cross, cross_square = list(rest[: len(pairs)]), list(rest[len(pairs) : 2 * len(pairs)])
    params = rest[2 * len(pairs) :]
    centers = []
    for i, (kernel, bias) in enumerate(pairs):
        shift = gradient[bias]
        cross[i] = keep_cross * cross[i] + (1 - keep_cross) * gradient[kernel] @ shift
        cross_square[i] = keep_cross * cross_square[i] + (1 - keep_cross) * shift @ shift
        safe = jnp.where(cross_square[i] > 0, cross_square[i], 1)  # no gradient yet: no mean
        centers.append((cross[i] / safe)[..., None])
    for (kernel, bias), center in zip(pairs, centers, strict=True):
        gradient[kernel] = gradient[kernel] - center * gradient[bias]
    mean = [keep * m + (1 - keep) * g for m, g in zip(mean, gradient, strict=True)]
    square = [
        keep_square * s + (1 - keep_square) * g**2 for s, g in zip(square, gradient, strict=True)
    ]
    update = [
        rate * (of_mean * m + of_gradient * g) / (jnp.sqrt(of_square * s) + epsilon)
        for g, m, s in zip(gradient, mean, square, strict=True)
    ]
    for (kernel, bias), center in zip(pairs, centers, strict=True):
        moved = (center * update[kernel]).reshape(-1, *update[bias].shape).sum(0)
        update[bias] = update[bias] - moved
    if added:
        update = [p + u for p, u in zip(params, update, strict=True)]
    return [*update, *mean, *square, *cross, *cross_square]


def _adam_shapes(
    _: Any, *leaves: Any, pairs: Sequence[Any], added: bool
) -> list[tuple[tuple[int, ...], Any]]:
    count = _per_kind(leaves, pairs, added)
    return [(leaf.shape, leaf.dtype) for leaf in leaves[: 3 * count + 2 * len(pairs)]]


def _adam_kernel(
    scales: Array, *leaves: Array, pairs: tuple[tuple[int, int], ...], added: bool
) -> Any:
    shapes = _adam_shapes(scales, *leaves, pairs=pairs, added=added)
    results = [jax.ShapeDtypeStruct(*made) for made in shapes]
    # Averages are written where they lie, and parameters.
    count = _per_kind(leaves, pairs, added)
    kept = {1 + i: i for i in range(count, len(results))}
    kept |= {1 + len(results) + i: i for i in range(len(leaves) - len(results))}
    call = jax.ffi.ffi_call("jaxdae_adam", results, input_output_aliases=kept)
    return list(call(scales, *leaves, pairs=np.array(pairs, np.int64).reshape(-1, 2).T.reshape(-1)))


def _adam_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], **options: Any
) -> tuple[list[Any], list[Any]]:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(partial(_adam, **options), tuple(primals), tangents)


adam_p = _primitive("adam", _adam, _adam_shapes, _adam_kernel, several=True)
ad.primitive_jvps[adam_p] = _adam_jvp


# Normal numbers, in which XLA's loop on a CPU waits for one long chain of operations at a time.


def normal(key: Key[Array, ""], count: int, dtype: Any = jnp.float32) -> Float[Array, " count"]:
    """`jax.random.normal(key, (count,), dtype)`, the same numbers; faster on a CPU.

    Args:
      key: any; faster is JAX's default, a typed threefry key.
      count: how many, below 2**32; more raise a ValueError where they are compiled.
      dtype: any float type; faster is float32.

    Returns:
      Numbers of N(0, 1), (count,).
    """
    fast = unrolled(key)
    with jax.named_scope("random_normal"):  # so a profile calls it
        if fast is key or dtype != jnp.float32 or count >= 2**32 or not available():
            return jax.random.normal(fast, (count,), dtype)
        kernel, form = (partial(f, count=count) for f in (normal_p.bind, _normal))
        return lax.platform_dependent(jax.random.key_data(key), cpu=kernel, default=form)


def _normal(keys: Array, *, count: int) -> Array:
    def row(words: Array) -> Array:
        key = unrolled(jax.random.wrap_key_data(words, impl="threefry2x32"))
        return jax.random.normal(key, (count,), jnp.float32)

    return jax.vmap(row)(keys.reshape(-1, 2)).reshape(*keys.shape[:-1], count)


def _normal_kernel(keys: Array, *, count: int) -> Array | None:
    result = jax.ShapeDtypeStruct((*keys.shape[:-1], count), jnp.float32)
    return jax.ffi.ffi_call("jaxdae_normal", result)(keys)


def _normal_batch(arguments: Sequence[Any], axes: Sequence[Any], *, count: int) -> tuple[Any, Any]:
    return normal_p.bind(jnp.moveaxis(arguments[0], axes[0], 0), count=count), 0


normal_p = _primitive(
    "normal", _normal, lambda keys, count: ((*keys.shape[:-1], count), jnp.float32), _normal_kernel
)
batching.primitive_batchers[normal_p] = _normal_batch
