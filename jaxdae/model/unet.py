"""The U-Net: skips instead of a bottleneck."""

from math import prod

from flax import linen as nn

from jaxdae.model.base import Denoiser
from jaxdae.model.layers import Conv, ConvTranspose, Dense, Dtype, Images, add


class ResidualConv(nn.Module):
    """`x + conv(relu(x))`, 3x3: nothing of the sum is lost to a relu."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        return add(x, Conv(self.features, self.features, self.dtype, name="conv")(x, rectify=True))


class UNet(Denoiser):
    """`unet`: no bottleneck, for whoever wants clean images and no latent vector.

    After Ronneberger, Fischer and Brox, "U-Net" (2015), made cheap: a thin stem at full size, most
    of the work below it, skips that add instead of concatenating, and at the smallest size a dense
    bridge over the whole image, which tells every pixel what digit it is part of. Relus stand
    before the convolutions and not behind the sums, so that what comes into a level reaches its end
    unchanged (He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016).

    Fields:
      features: channels at full size, and after each halving of it.
      bridge: width of the dense bridge; 0 for none.
      bridge_channels: channels of the image that goes into the bridge.
    """

    features: tuple[int, ...] = (24, 48, 96)
    bridge: int = 384
    bridge_channels: int = 16

    @nn.compact
    def restore(self, images: Images) -> Images:
        first, *deeper = self.features
        x = Conv(self.image_shape[2], first, self.dtype, name="stem")(images)
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
        return Conv(inputs, self._outputs, self.dtype, name="output")(x, rectify=True)

    def _bridge(self, x: Images) -> Images:
        """What the whole of a small image says about each of its pixels."""
        channels, thin, one = x.shape[-1], self.bridge_channels, (1, 1)
        narrow = Conv(channels, thin, self.dtype, one, name="bridge_in")(x)
        size = prod(narrow.shape[1:])
        hidden = Dense(size, self.bridge, self.dtype, name="bridge_hidden")(narrow, rectify=True)
        wide = Dense(self.bridge, size, self.dtype, name="bridge_wide")(hidden, rectify=True)
        return Conv(thin, channels, self.dtype, one, name="bridge_out")(wide.reshape(narrow.shape))

    @property
    def padded(self) -> tuple[int, int]:
        stride = 2 ** (len(self.features) - 1)
        height, width = (-(-size // stride) * stride for size in self.image_shape[:2])
        return height, width
