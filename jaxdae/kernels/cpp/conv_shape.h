// The shape of a convolution, and its polyphase components.
//
// Names are the forward convolution's, y = conv(x, w): x has a batch of images of `x_channels`, y
// one of `y_channels`, both (batch, height, width, channels). The data gradient (which is also the
// transposed convolution) reads y and writes x; the weight gradient reads both.

#pragma once

#include <algorithm>
#include <vector>

namespace {

struct ConvShape {
  long batch, x_size[2], kernel[2], stride, pad_low[2], y_size[2], x_channels, y_channels;
  // The kernel lies as a transposed convolution's does: (taps, y_channels, x_channels), last tap
  // first. Else it is (taps, x_channels, y_channels).
  bool rotated;

  long taps() const { return kernel[0] * kernel[1]; }
  // Element (tap, cx, cy) of the kernel is at
  // first() + tap * tap_step() + cx * x_step() + cy * y_step().
  long first() const { return rotated ? (taps() - 1) * x_channels * y_channels : 0; }
  long tap_step() const { return (rotated ? -1 : 1) * x_channels * y_channels; }
  long x_step() const { return rotated ? 1 : y_channels; }
  long y_step() const { return rotated ? x_channels : 1; }
  // True of a dense layer: images of one pixel.
  bool is_dense() const {
    return taps() == 1 && !rotated && x_size[0] * x_size[1] * y_size[0] * y_size[1] == 1 &&
           pad_low[0] == 0 && pad_low[1] == 0;
  }
};

// Taps of one kernel row that read neighbouring pixels: for position (i, j) those from
// `source_step * (i, j) + (dy, dx)` on. Pixel k meets tap `tap + k * tap_step`.
struct KernelRow {
  long dy, dx, taps, tap, tap_step;
};

// Output positions that the same taps reach: position (i, j) of the component is output pixel
// `step * (i, j) + first`. A convolution has one component. The data gradient of stride s has
// s * s, pixels with equal remainders modulo s, and each is a convolution of stride 1.
struct Polyphase {
  long first[2], step, size[2], source_step;
  std::vector<KernelRow> rows;
};

inline Polyphase forward_component(const ConvShape& s) {
  Polyphase component{{0, 0}, 1, {s.y_size[0], s.y_size[1]}, s.stride, {}};
  for (long i = 0; i < s.kernel[0]; ++i)
    component.rows.push_back(
        {i - s.pad_low[0], -s.pad_low[1], s.kernel[1], i * s.kernel[1], 1});
  return component;
}

inline std::vector<Polyphase> data_grad_components(const ConvShape& shape) {
  const long s = shape.stride;
  std::vector<Polyphase> components;
  for (long row = 0; row < std::min(s, shape.x_size[0]); ++row)
    for (long column = 0; column < std::min(s, shape.x_size[1]); ++column) {
      const long rows = (shape.x_size[0] - row + s - 1) / s,
                 columns = (shape.x_size[1] - column + s - 1) / s;
      Polyphase component{{row, column}, s, {rows, columns}, 1, {}};
      // The taps that reach it are s apart; the last of them reads the leftmost pixel.
      const long i0 = ((row + shape.pad_low[0]) % s + s) % s,
                 j0 = ((column + shape.pad_low[1]) % s + s) % s;
      const long taps = j0 < shape.kernel[1] ? (shape.kernel[1] - 1 - j0) / s + 1 : 0;
      const long last = j0 + (taps - 1) * s;
      for (long i = i0; i < shape.kernel[0] && taps; i += s)
        component.rows.push_back({(row + shape.pad_low[0] - i) / s,
                                  (column + shape.pad_low[1] - last) / s, taps,
                                  i * shape.kernel[1] + last, -s});
      components.push_back(component);
    }
  return components;
}

}  // namespace
