"""What the primitives are held to: `jax.lax` on images and masks, and what the tests share."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdae.kernels import primitives as pr

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)
PRIMITIVES = {
    "conv_forward": pr.conv_forward_p,
    "conv_data_grad": pr.conv_data_grad_p,
    "conv_weight_grad": pr.conv_weight_grad_p,
}


def random_normal(seed, shape, dtype=jnp.float32):
    """Drawn by NumPy, which compiles nothing for a new shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def uniform_leaves(seed, shapes, low=-1.0):
    draw = np.random.default_rng(seed).uniform
    return [jnp.asarray(draw(low, 1.0, shape), jnp.float32) for shape in shapes]


def rotate(w, shape):
    """A matrix as it lies rotated, and back."""
    blocks = w.reshape(shape.taps, -1, w.shape[1])[::-1].transpose(0, 2, 1)
    return blocks.reshape(-1, blocks.shape[2])


def apply_mask(x, mask):
    return jnp.where(mask <= 0, 0, x).astype(x.dtype) if mask.size else x


def conv_forward(w, x, bias, *masks, shape, rotated=False):
    w = rotate(w, shape) if rotated else w
    x, narrow = apply_mask(x, masks[0]), x.dtype
    kernel = w.reshape(*shape.kernel, x.shape[3], -1).astype(narrow)
    wide = jnp.promote_types(narrow, jnp.float32)
    out = lax.conv_general_dilated(
        x.astype(wide),
        kernel.astype(wide),
        (shape.stride, shape.stride),
        shape.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return apply_mask((out + bias if bias.size else out).astype(narrow), masks[1])


def conv_data_grad(w, y, bias, *masks, shape, rotated=False):
    w = rotate(w, shape) if rotated else w
    wide = jnp.promote_types(y.dtype, jnp.float32)
    rounded = w.astype(y.dtype).astype(wide)
    x = jax.ShapeDtypeStruct((len(y), *shape.x_size, len(w) // shape.taps), wide)

    def adjoint(x):
        return conv_forward(rounded, x, *3 * [pr.none()], shape=shape)

    (out,) = jax.linear_transpose(adjoint, x)(apply_mask(y, masks[1]).astype(wide))
    return apply_mask((out + bias if bias.size else out).astype(y.dtype), masks[0])


def conv_weight_grad(x, y, bias, *masks, shape, rotated=False):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    x, y = (apply_mask(*both).astype(wide) for both in zip((x, y), masks, strict=True))

    def adjoint(w):
        return conv_forward(w, x, *3 * [pr.none()], shape=shape)

    w = jax.ShapeDtypeStruct((shape.taps * x.shape[3], y.shape[3]), wide)
    (out,) = jax.linear_transpose(adjoint, w)(y)
    return rotate(out, shape) if rotated else out


REFERENCES = {
    "conv_forward": conv_forward,
    "conv_data_grad": conv_data_grad,
    "conv_weight_grad": conv_weight_grad,
}
