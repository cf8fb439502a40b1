"""The network for photographs: a residual U-Net without biases, told the noise level."""

from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

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

    The noise level is a further channel of the input. Without one, the channel is zero: a network
    that is trained so is blind, and is to be called so. One that is trained with noise levels takes
    images without a level for clean ones, and returns them nearly unchanged.

    A fresh network nearly returns its input. With another number of channels out than in, there is
    nothing to subtract from: the output is `-f(images, sigma)`.

    Fields:
      features: channels at half size, and after each further halving.
      blocks: residual blocks at each scale on the way down, in the middle, and on the way up.
    """

    output: Literal["sigmoid", "linear"] = "linear"
    features: tuple[int, ...] = (48, 64, 96)
    blocks: int = 2

    def logits(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        """As a call, before the output's nonlinearity.

        Raises:
          InputError: the images do not fit `channels`, or the noise level does not fit the images.
        """
        self._check(images)
        return super().logits(images, self._noise_map(images, sigma))

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
        return 2 ** len(self.features)

    @property
    def reach(self) -> int:
        ends = [self._inputs_of(pixel) for pixel in range(self.stride)]
        return max(max(pixel - low, high - pixel) for pixel, (low, high) in enumerate(ends))

    def _inputs_of(self, pixel: int) -> tuple[int, int]:
        """The first and the last pixel, along an axis, that an output pixel depends on."""
        low = high = pixel

        def convolutions(count: int) -> None:  # 3x3
            nonlocal low, high
            low, high = low - count, high + count

        def coarser() -> None:  # a transposed convolution, 2x2, or a pixel shuffle
            nonlocal low, high
            low, high = low // 2, high // 2

        def finer() -> None:  # a strided convolution, 2x2, or a pixel unshuffle
            nonlocal low, high
            low, high = 2 * low, 2 * high + 1

        # From the output back to the input. A skip connection reaches less far than its way round.
        levels, stack = len(self.features) - 1, 2 * self.blocks
        coarser()
        convolutions(1)
        for _ in range(levels):
            convolutions(stack)
            coarser()
        convolutions(stack)
        for _ in range(levels):
            finer()
            convolutions(stack)
        convolutions(1)
        finer()
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
