"""The U-Net: skip connections instead of a bottleneck."""

from math import prod

from flax import linen as nn

from jaxdae.errors import InputError
from jaxdae.model.base import Denoiser, NoiseLevel, round_up
from jaxdae.model.layers import Conv, ConvTranspose, Dense, Dtype, Images, add


class ResidualConv(nn.Module):
    """`x + conv(relu(x))`, 3x3: the identity path has no ReLU."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        return add(x, Conv(self.features, self.features, self.dtype, name="conv")(x, rectify=True))


class UNet(Denoiser):
    """`unet`: the cleanest images, at every noise level, and no latent vector. Any image size.

    After Ronneberger, Fischer and Brox, "U-Net" (2015), made cheap: a thin stem at full size, most
    of the work below it, and skip connections that add instead of concatenating. ReLUs stand before
    the convolutions (pre-activation: He, Zhang, Ren and Sun, "Identity mappings in deep residual
    networks", 2016).

    An optional dense bridge connects all pixels of the smallest image, so that each of them depends
    on the whole image. It fixes the image size.

    Fields:
      features: channels at full size, and after each halving of it.
      bridge: width of the dense bridge; 0 for none.
      bridge_channels: channels of the image that goes into the bridge.
      image_size: the (height, width) of the images; only with a bridge.
    """

    features: tuple[int, ...] = (24, 48, 96)
    bridge: int = 0
    bridge_channels: int = 16

    @nn.compact
    def forward(self, images: Images, sigma: NoiseLevel | None = None) -> Images:
        first, *deeper = self.features
        x = Conv(self.channels, first, self.dtype, name="stem")(images)
        skips, inputs = [], first
        for i, outputs in enumerate(deeper):
            skips.append(x)
            x = Conv(inputs, outputs, self.dtype, stride=2, name=f"down_{i}")(x, rectify=True)
            x = ResidualConv(outputs, self.dtype, name=f"encode_{i}")(x)
            inputs = outputs
        if self.bridge:
            x = add(x, self._bridge(x))
        for i, outputs in reversed(list(enumerate(self.features[:-1]))):
            x = ResidualConv(inputs, self.dtype, name=f"decode_{i}")(x)
            up = ConvTranspose(inputs, outputs, self.dtype, stride=2, name=f"up_{i}")
            x = add(up(x, rectify=True), skips[i])
            inputs = outputs
        x = Conv(inputs, inputs, self.dtype, name="last")(x, rectify=True)
        return Conv(inputs, self.outputs, self.dtype, name="output")(x, rectify=True)

    def _bridge(self, x: Images) -> Images:
        """Dense layers over the whole of a small image, between 1x1 convolutions."""
        if self.image_size is None:
            raise InputError(
                f"bridge={self.bridge} needs image_size, the (height, width) of the images: give "
                "it, or bridge=0 for images of any size"
            )
        channels, thin, one = x.shape[-1], self.bridge_channels, (1, 1)
        narrow = Conv(channels, thin, self.dtype, one, name="bridge_in")(x)
        size = prod(narrow.shape[1:])
        hidden = Dense(size, self.bridge, self.dtype, name="bridge_hidden")(narrow, rectify=True)
        wide = Dense(self.bridge, size, self.dtype, name="bridge_wide")(hidden, rectify=True)
        return Conv(thin, channels, self.dtype, one, name="bridge_out")(wide.reshape(narrow.shape))

    def padded_side(self, side: int) -> int:
        return round_up(side, 2 ** (len(self.features) - 1))
