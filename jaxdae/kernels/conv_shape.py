"""The shape of a convolution."""

from collections.abc import Sequence
from typing import NamedTuple


class ConvShape(NamedTuple):
    """Where a kernel stands on an image.

    Names are the forward convolution's, y = conv(x, w). The data gradient and the transposed
    convolution have the same shape: they read y and write x.

    Fields:
      x_size: (height, width) of x.
      kernel: (height, width) of the kernel.
      stride: the step between positions, the same along both axes.
      padding: (low, high) along each axis; position i reads pixels from `stride * i - low` on.
    """

    x_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    padding: tuple[tuple[int, int], ...]

    @property
    def y_size(self) -> tuple[int, ...]:
        """(height, width) of y: the number of positions along each axis."""
        axes = zip(self.x_size, self.kernel, self.padding, strict=True)
        return tuple(
            (size + low + high - window) // self.stride + 1 for size, window, (low, high) in axes
        )

    @property
    def taps(self) -> int:
        """The kernel's elements for one pair of channels."""
        return self.kernel[0] * self.kernel[1]


ONE_PIXEL = ConvShape((1, 1), (1, 1), 1, ((0, 0), (0, 0)))  # of a dense layer


def transpose_padding(kernel: Sequence[int], stride: int) -> list[tuple[int, int]]:
    """What `lax.conv_transpose` calls "SAME": (low, high) padding of the dilated input.

    Args:
      kernel: (height, width), and further axes that do not count.
    """
    totals = [k + stride - 2 for k in kernel[:2]]
    lows = [
        k - 1 if stride > k - 1 else -(-total // 2)
        for k, total in zip(kernel[:2], totals, strict=True)
    ]
    return [(low, total - low) for low, total in zip(lows, totals, strict=True)]


def mirrored(padding: Sequence[tuple[int, int]], kernel: Sequence[int]) -> tuple:
    """The padding of the data gradient that equals a convolution by the rotated kernel, or back.

    Output p of the convolution reads pixel p + k - low; in the data gradient, pixel x goes to
    output x - k + low.
    """
    return tuple(
        (k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel[:2], padding, strict=True)
    )
