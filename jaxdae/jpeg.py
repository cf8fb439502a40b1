"""JPEG in JAX: what compression does to an image, without the file.

    image = compress(image, quality=80, subsample=True)

As libjpeg does it: Annex K's tables scaled by a quality, chroma at half size averaged on the way in
and interpolated on the way out. ITU-T T.81 (1992); JFIF 1.02 (1992).

All is integer arithmetic, as there: the same bits on every device and in every batch. Its rounding
is libjpeg's, too, except that libjpeg factors the DCT, so that now and then a coefficient is
rounded to the neighbouring step.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdae.errors import InputError

Plane = Int[Array, "height width"]  # 0 to 255

# ITU-T T.81, tables K.1 and K.2.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.int32,
)
CHROMINANCE = np.full((8, 8), 99, np.int32)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# Rec. 601 as JFIF has it: RGB to Y, Cb, Cr, of which Cb and Cr lie around 128.
YCC = np.array([[0.299, 0.587, 0.114], [-0.16874, -0.33126, 0.5], [0.5, -0.41869, -0.08131]])
RGB = np.array([[1, 0, 1.402], [1, -0.34414, -0.71414], [1, 1.772, 0]])

# The orthonormal DCT-II: row u is the cosine of frequency u.
_U, _I = np.mgrid[:8, :8]
DCT = np.where(_U, 1 / 2, np.sqrt(1 / 8)) * np.cos((2 * _I + 1) * _U * np.pi / 16)
BITS = 13  # after the point, of the cosines
KEPT = 2  # of them between rows and columns
COSINES = np.round(DCT * np.sqrt(8) * 2**BITS).astype(np.int32)


def compress(
    image: Float[Array, "height width channels"],
    quality: Array | float,
    subsample: Array | bool = True,
) -> Float[Array, "height width channels"]:
    """An image after JPEG.

    Args:
      image: gray or RGB, in [0, 1]; rounded to 8 bits.
      quality: libjpeg's, 1 to 100; may be traced.
      subsample: keep chroma at half the height and width (4:2:0); may be traced.

    Returns:
      The decoded image: float32, in [0, 1], multiples of 1/255.

    Raises:
      InputError: the image is neither gray nor RGB.
    """
    if image.shape[-1] not in (1, 3):
        raise InputError(
            f"JPEG takes gray and RGB images, and these have {image.shape[-1]} channels: leave "
            "JPEG out"
        )
    pixels = to_bytes(image)
    luminance, chrominance = (table(base, quality) for base in (LUMINANCE, CHROMINANCE))
    if image.shape[-1] == 1:
        return through_blocks(pixels[..., 0], luminance)[..., None].astype(jnp.float32) / 255
    mixture = mixed(pixels, YCC)
    y, cb, cr = (mixture[..., i] + offset for i, offset in enumerate((0, 128, 128)))
    y = through_blocks(y, luminance)
    cb, cr = (
        jnp.where(subsample, _through_half(plane, chrominance), through_blocks(plane, chrominance))
        for plane in (cb, cr)
    )
    colours = mixed(jnp.stack([y, cb - 128, cr - 128], -1), RGB)
    return jnp.clip(colours, 0, 255).astype(jnp.float32) / 255


def to_bytes(image: Array) -> Array:
    """[0, 1] to whole numbers from 0 to 255, int32."""
    return jnp.clip(jnp.round(image.astype(jnp.float32) * 255), 0, 255).astype(jnp.int32)


def table(base: Array | np.ndarray, quality: Array | float) -> Int[Array, "8 8"]:
    """A quantisation table, scaled for a whole quality as libjpeg does."""
    quality = jnp.asarray(quality).astype(jnp.int32)
    scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return jnp.clip((base * scale + 50) // 100, 1, 255)


def through_blocks(plane: Plane, quantisation: Int[Array, "8 8"]) -> Plane:
    """Quantises the DCT of each block of 8x8 pixels, and undoes it."""
    height, width = plane.shape
    padded = jnp.pad(plane - 128, ((0, -height % 8), (0, -width % 8)), mode="edge")
    down, across = padded.shape[0] // 8, padded.shape[1] // 8
    # (row, column, block): vectors run over the blocks.
    blocks = padded.reshape(down, 8, across, 8).transpose(1, 3, 0, 2).reshape(8, 8, -1)
    # Eight times the coefficients of the DCT.
    coefficients = _columns(COSINES, _rows(COSINES, blocks, BITS - KEPT), BITS + KEPT)
    quantisation = quantisation[..., None]
    step = 8 * quantisation
    steps = jnp.sign(coefficients) * lax.div(jnp.abs(coefficients) + step // 2, step)
    columns = _columns(COSINES.T, steps * quantisation, BITS - KEPT)
    blocks = _rows(COSINES.T, columns, BITS + KEPT + 3).reshape(8, 8, down, across)
    restored = blocks.transpose(2, 0, 3, 1).reshape(padded.shape)[:height, :width]
    return jnp.clip(restored + 128, 0, 255)


def _through_half(plane: Plane, quantisation: Int[Array, "8 8"]) -> Plane:
    """`through_blocks` at half the size."""
    height, width = plane.shape
    plane = jnp.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    # Halves are rounded down and up in turns.
    bias = 1 + jnp.arange(plane.shape[1] // 2) % 2
    total = plane[::2] + plane[1::2]
    half = (total[:, ::2] + total[:, 1::2] + bias) // 4
    half = through_blocks(half, quantisation)[: -(-height // 2), : -(-width // 2)]
    whole = doubled(doubled(half).T).T  # 16 times the values
    return ((whole + 8 - jnp.arange(whole.shape[1]) % 2) // 16)[:height, :width]


def doubled(plane: Int[Array, "height width"]) -> Int[Array, "2*height width"]:
    """Doubles the height by linear interpolation: 3 times the nearer row and once the other."""
    above = jnp.concatenate([plane[:1], plane[:-1]])
    below = jnp.concatenate([plane[1:], plane[-1:]])
    return jnp.stack([3 * plane + above, 3 * plane + below], 1).reshape(-1, plane.shape[1])


def mixed(image: Int[Array, "height width 3"], matrix: np.ndarray) -> Int[Array, "height width 3"]:
    """A matrix times the channels of each pixel, rounded."""
    weights = np.floor(matrix * 2**16 + 0.5).astype(np.int32)
    return _rounded(jnp.einsum("oc,hwc->hwo", weights, image), 16)


def _rows(basis: np.ndarray, blocks: Array, bits: int) -> Array:
    """basis times each row of each block, divided by 2 ** bits."""
    return _rounded(jnp.einsum("vj,ijn->ivn", basis, blocks), bits)


def _columns(basis: np.ndarray, blocks: Array, bits: int) -> Array:
    return _rounded(jnp.einsum("ui,ijn->ujn", basis, blocks), bits)


def _rounded(x: Array, bits: int) -> Array:
    """x / 2 ** bits, rounded."""
    return (x + (1 << (bits - 1))) >> bits
