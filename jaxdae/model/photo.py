"""The network for photographs: a residual U-Net without biases, told the noise level."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from jaxdae.errors import InputError
from jaxdae.model.base import Denoiser, NoiseLevel, reflect, round_up
from jaxdae.model.layers import (
    Conv,
    ConvTranspose,
    Dtype,
    Images,
    add,
    pixel_shuffle,
    pixel_unshuffle,
    upsample,
)


def scaled(scale: float) -> nn.initializers.Initializer:
    """Random kernels that multiply the variance of independent inputs by `scale`."""
    return nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")


class ResidualBlock(nn.Module):
    """`x + conv(relu(conv(x)))`, 3x3, without biases.

    Fields:
      share: the variance of the second term at the start, if that of x is 1.
    """

    features: int
    share: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        conv = partial(Conv, self.features, self.features, self.dtype, use_bias=False)
        hidden = conv(kernel_init=scaled(1), name="conv_0")(x)
        # A ReLU halves the mean square, hence the 2: He, Zhang, Ren and Sun (2015).
        out = conv(kernel_init=scaled(2 * self.share), name="conv_1")(hidden, rectify=True)
        return add(x, out)


class NoiseEstimator(nn.Module):
    """The noise's standard deviation at each pixel: (batch, height, width, 1), of few sizes.

    Without biases, it grows with the image: f(a * images) = a * f(images) for a > 0.

    Fields:
      channels: of the images.
      features: channels at half size, and after each further halving.
    """

    channels: int
    features: tuple[int, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, images: Images) -> Images:
        layer: dict[str, Any] = {"dtype": self.dtype, "use_bias": False}
        window: dict[str, Any] = {}
        x, inputs = pixel_unshuffle(images), 4 * self.channels
        for i, outputs in enumerate(self.features):
            down, conv = (
                partial(Conv, n, outputs, kernel_init=scaled(2), **layer) for n in (inputs, outputs)
            )
            x = down(name=f"down_{i}", **window)(x, rectify=i > 0)
            x = conv(name=f"conv_{i}")(x, rectify=True)
            inputs, window = outputs, {"kernel_size": (2, 2), "stride": 2}
        last = Conv(inputs, 1, kernel_init=scaled(1), name="output", **layer)
        level = jnp.abs(last(x, rectify=True)).astype(images.dtype)
        for _ in self.features:
            level = upsample(level)
        return level


class PhotoDenoiser(Denoiser):
    """`photo`: photographs, gray or in colour, of any size, at every noise level.

    The output is `images - f(images, sigma)`, where f is a residual U-Net (Zhang et al.,
    "Plug-and-play image restoration with deep denoiser prior", 2021: DRUNet) made cheap: it works
    on 2x2 pixels at a time (FFDNet: Zhang, Zuo and Zhang, 2018). Of each image and its noise map,
    2x2 pixels become the channels of one; skip connections add. At its defaults it has 0.88 million
    parameters, and takes 70,000 multiplications a pixel.

    No layer has a bias: `f(a * images, a * sigma) = a * f(images, sigma)` for a > 0. So a network
    generalises to noise levels that it was not trained on (Mohan et al., "Robust and interpretable
    blind image denoising via bias-free convolutional neural networks", 2020). A sigmoid output
    would undo that.

    The noise level is a further channel of the input. Where it is not given, a small network
    estimates it at each pixel (as CBDNet's does: Guo, Yan, Zhang, Zuo and Zhang, "Toward
    convolutional blind denoising of real photographs", 2019), `noise_level`. Without that network,
    the channel is zero: a network that is trained so is blind.

    A fresh network nearly returns its input. With another number of channels out than in, there is
    nothing to subtract from: the output is `-f(images, sigma)`, and nothing is estimated.

    Fields:
      features: channels at half size, and after each further halving.
      blocks: residual blocks at each scale on the way down, in the middle, and on the way up.
      level_features: likewise of the network that estimates the noise level; () for none.
    """

    output: Literal["sigmoid", "linear"] = "linear"
    features: tuple[int, ...] = (48, 64, 96)
    blocks: int = 2
    level_features: tuple[int, ...] = (24, 48, 64)

    takes_noise_level = True

    @property
    def estimates(self) -> bool:
        return bool(self.level_features) and self.outputs == self.channels

    def setup(self) -> None:
        if self.estimates:
            self.level = NoiseEstimator(self.channels, self.level_features, self.dtype)

    def logits(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        """As a call, before the output's nonlinearity.

        Raises:
          InputError: the images do not fit `channels`, or the noise level does not fit the images.
        """
        self._check(images)
        if sigma is None and self.estimates:
            sigma = self.noise_level(images)
        return super().logits(images, self._noise_map(images, sigma))

    def noise_level(self, images: Images) -> Float[Array, "batch height width 1"]:
        """The estimated standard deviation of the noise at each pixel, at least 0.

        Raises:
          InputError: the images do not fit `channels`, or the network does not estimate it.
        """
        if not self.estimates:
            raise InputError("this network does not estimate noise levels: give sigma")
        _, height, width, _ = images.shape
        return self._cropped(self.level(self._padded(images)), (height, width))

    @nn.compact
    def forward(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        # The difference is taken in float32 at least, whatever the network computes in.
        images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
        level = self._noise_map(images, None) if sigma is None else sigma
        for axis in (1, 2):
            level = reflect(level, axis, images.shape[axis] - level.shape[axis])
        x = pixel_unshuffle(jnp.concatenate([images, level.astype(images.dtype)], axis=-1))

        levels = len(self.features) - 1
        share = 1 / (self.blocks * (2 * levels + 1))  # the variance grows e-fold over all blocks
        layer = {"dtype": self.dtype, "use_bias": False}

        def stack(x: Images, name: str) -> Images:
            for i in range(self.blocks):
                x = ResidualBlock(x.shape[-1], share, self.dtype, name=f"{name}_{i}")(x)
            return x

        first, *deeper = self.features
        stem = Conv(x.shape[-1], first, kernel_init=scaled(1), name="stem", **layer)
        x, skips, inputs = stem(x), [], first
        window = {"kernel_size": (2, 2), "stride": 2, **layer}
        for i, outputs in enumerate(deeper):
            x = stack(x, f"encode_{i}")
            skips.append(x)
            x = Conv(inputs, outputs, kernel_init=scaled(1), name=f"down_{i}", **window)(x)
            inputs = outputs
        x = stack(x, "middle")
        for i, outputs in reversed(list(enumerate(self.features[:-1]))):
            # One of the four taps makes each output: 4 keeps the variance, 2 that of the sum.
            up = ConvTranspose(inputs, outputs, kernel_init=scaled(2), name=f"up_{i}", **window)
            x = stack(add(up(x), skips[i]), f"decode_{i}")
            inputs = outputs
        last = Conv(inputs, 4 * self.outputs, kernel_init=scaled(1e-4), name="output", **layer)
        noise = pixel_shuffle(last(x)).astype(images.dtype)
        return images - noise if self.outputs == self.channels else -noise

    def padded_side(self, side: int) -> int:
        return round_up(side, self.stride)

    @property
    def stride(self) -> int:
        return 2 ** max(len(self.features), len(self.level_features))

    @property
    def reach(self) -> int:
        ends = [self._inputs_of(pixel, pixel) for pixel in range(self.stride)]
        return max(max(pixel - low, high - pixel) for pixel, (low, high) in enumerate(ends))

    def _inputs_of(self, low: int, high: int) -> tuple[int, int]:
        """The first and the last input pixel that output pixels `low` to `high` depend on."""
        # From the output back to the input. A skip connection reaches less far than its way round.
        levels, stack = len(self.features) - 1, 2 * self.blocks
        way: list[int | str] = ["coarser", 1]
        for _ in range(levels):
            way += [stack, "coarser"]
        way += [stack]
        for _ in range(levels):
            way += ["finer", stack]
        low, high = inputs_of(low, high, [*way, 1, "finer"])
        if self.estimates:  # which the noise levels of those pixels depend on
            halvings = len(self.level_features)
            back: list[int | str] = [1, "finer"]  # from a scale to the next, twice as fine
            way = [*["coarser"] * halvings, 1, *back * (halvings - 1), 2, "finer"]
            low, high = inputs_of(low, high, way)
        return low, high

    def _noise_map(self, images: Images, sigma: NoiseLevel | None) -> Images:
        """The noise level of each pixel: (batch, height, width, 1)."""
        batch, height, width, _ = images.shape
        level = jnp.asarray(0.0 if sigma is None else sigma)
        if level.shape not in ((), (batch,), (batch, height, width, 1)):
            raise InputError(
                f"a noise level of shape {level.shape} does not fit images of shape "
                f"{images.shape}: give one number, {batch} numbers, or a map of shape "
                f"({batch}, {height}, {width}, 1)"
            )
        level = level.reshape(-1, 1, 1, 1) if level.ndim == 1 else level
        return jnp.broadcast_to(level, (batch, height, width, 1))


def inputs_of(low: int, high: int, way: Sequence[int | str]) -> tuple[int, int]:
    """The pixels, along an axis, that others depend on.

    Args:
      low, high: the first and the last of those others.
      way: from them back: a number of 3x3 convolutions; "coarser" for what doubles the size, such
        as a transposed 2x2 convolution; "finer" for what halves it.
    """
    for step in way:
        if step == "coarser":
            low, high = low // 2, high // 2
        elif step == "finer":
            low, high = 2 * low, 2 * high + 1
        else:
            low, high = low - int(step), high + int(step)
    return low, high


def gray_params(params: Any) -> Any:
    """The parameters of a `PhotoDenoiser` for gray images, from those of one for RGB.

    To start training from: the gray network does what the other does to three equal channels at a
    noise level sqrt(3) times as high. There the mean of three channels has independent noise, which
    is weaker by that; on equal channels the network would leave most of it.
    """
    flat = flatten_dict(params, sep="/")

    def merge(name: str, axis: int, channels: int, level: int) -> None:
        """Of each of the four pixels of 2x2, sums three channels; `level` more stay."""
        kernel = np.asarray(flat[f"{name}/kernel"])
        shape = list(kernel.shape)
        pixels = kernel.reshape(*shape[:axis], 4, channels, *shape[axis + 1 :])
        colours, others = np.split(pixels, [3], axis=axis + 1)
        parts = [colours.sum(axis + 1, keepdims=True), 3**0.5 * others]
        merged = np.concatenate(parts, axis=axis + 1)
        shape[axis] = 4 * (1 + level)
        flat[f"{name}/kernel"] = merged.reshape(shape)

    merge("stem", 2, 4, 1)
    merge("output", 3, 3, 0)
    flat["output/kernel"] = flat["output/kernel"] / 3
    if "level/down_0/kernel" in flat:
        merge("level/down_0", 2, 3, 0)
    return unflatten_dict(flat, sep="/")
