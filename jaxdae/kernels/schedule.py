"""How work is arranged on this platform: what costs less, not what is computed."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdae.kernels import build
from jaxdae.kernels.conv import conv_transpose, dense, weighted_image_sum


def gradient_piece() -> int:
    """Images that a CPU differentiates at a time: a larger batch would leave its caches."""
    return 128 if build.available() else 32


def dense_then_conv_transpose(
    latent: Float[Array, "batch n"],
    dense_kernel: Float[Array, "n height*width*in"],
    dense_bias: Float[Array, " height*width*in"],
    kernel: Float[Array, "kh kw in out"],
    bias: Float[Array, " out"],
    *,
    shape: tuple[int, int, int],
    stride: int,
) -> Float[Array, "batch height*stride width*stride out"]:
    """A dense layer, reshaped to images, and a transposed convolution, with less work in a batch.

    Equals `conv_transpose(dense(latent, ...).reshape(-1, *shape), kernel, bias)`, up to rounding.
    With no activation in between, the two layers are one affine map of the latent vector: the
    convolution is applied to the rows of the dense kernel and to its bias, n + 1 images however
    large the batch, and each result is a weighted sum of these. Where the parameters are known as
    this is traced, as in `jax.jit(lambda images: model.apply(variables, images))`, these images are
    a constant of the program.

    Args:
      shape: (height, width, in) of the images.
      stride: as in `conv_transpose`.
    """
    batch, inputs = latent.shape
    parameters = (dense_kernel, dense_bias, kernel)
    constant = (
        build.available()
        and isinstance(latent, jax.core.Tracer)
        and not any(isinstance(x, jax.core.Tracer) for x in parameters)
    )
    # In a small batch the map saves little, and its odd size costs more the faster products are. A
    # symbolic batch has any size. On AMX tiles products cost less than the sums would.
    wide = latent.dtype.itemsize >= 4
    small = (1 if wide else 3) if constant else (inputs + 1) * (2 if wide else 3.5)
    if not isinstance(batch, int) or batch <= small or build.uses_amx(latent.dtype):
        images = dense(latent, dense_kernel, dense_bias).reshape(-1, *shape)
        return conv_transpose(images, kernel, bias, stride=stride)
    options: dict[str, Any] = {"shape": shape, "stride": stride, "dtype": latent.dtype}
    if constant:
        with jax.ensure_compile_time_eval():
            images = _joint_map_now(*parameters, **options)
    else:
        images = _joint_map(*parameters, **options)
    return weighted_image_sum(latent, images, bias)


def _joint_map(
    dense_kernel: Array,
    dense_bias: Array,
    kernel: Array,
    *,
    shape: tuple[int, ...],
    stride: int,
    dtype: Any,
) -> Array:
    """The rows of a dense kernel and its bias, as a transposed convolution's kernel leaves them."""
    rows = jnp.concatenate([dense_kernel, dense_bias[None]])
    # No narrower than the parameters: the result is a kernel.
    rows = rows.astype(jnp.promote_types(rows.dtype, dtype))
    return conv_transpose(rows.reshape(-1, *shape), kernel, stride=stride)


_joint_map_now = jax.jit(_joint_map, static_argnames=("shape", "stride", "dtype"))
