// The data gradient of stride 1 to few channels, on AMX tiles.
//
// One product along a row of y gives what that row adds to the image for every kernel row at once;
// the image is the sum of these, shifted by a row each.

#pragma once

#include "pack.h"
#include "padded_tile.h"

namespace {

inline bool row_amx_applies(const ConvShape& s) {
  return s.stride == 1 && s.kernel[0] * s.x_channels <= BLOCK;
}

inline void data_grad_rows_amx(ffi::ThreadPool& pool, const ConvShape& s,
                               const MaskedView<bfloat16>& y, const float* weights,
                               const float* bias, const bfloat16* mask, bfloat16* out) {
  // Pack: K is a kernel row's taps (the last one is leftmost), N all kernel rows' channels.
  const long depth = round_up(s.kernel[1] * s.y_channels, 2 * BLOCK) / 2;  // words
  const long wide = round_up(s.kernel[0] * s.x_channels, 4);
  float* start = scratch<float>(Use::WEIGHTS, BLOCK + depth * wide);
  uint32_t* packed = (uint32_t*)start + BLOCK;
  std::memset(start, 0, (BLOCK + depth * wide) * sizeof(float));
  for (long a = 0; a < s.kernel[0]; ++a)
    for (long b = 0; b < s.kernel[1]; ++b)
      for (long c = 0; c < s.x_channels; ++c)
        for (long o = 0; o < s.y_channels; ++o) {
          const long k = (s.kernel[1] - 1 - b) * s.y_channels + o;
          store((bfloat16*)(packed + k / 2 * wide + a * s.x_channels + c) + k % 2,
                weights[s.first() + (a * s.kernel[1] + b) * s.tap_step() + c * s.x_step() +
                        o * s.y_step()]);
        }
  const PaddedTile<bfloat16> whole(y, 1, s.pad_low[1] - s.kernel[1] + 1,
                                   s.x_size[1] + s.kernel[1] - 1, 0, 0);
  const long taken = std::max(2L, 8192 / (whole.width * s.y_channels) / 2 * 2);  // rows in L1
  const long block = block_size(s.x_size[1], BLOCK), line = round_up(s.x_size[1], block) * wide;

  parallel_for(pool, s.batch, [&](long image) {
    PaddedTile<bfloat16> tile = whole;
    float* sums = scratch<float>(Use::C, (s.y_size[0] + 2) * line);
    float* total = scratch<float>(Use::FILTER, line + s.x_size[1] * s.x_channels + LANES);
    float* row = total + line + LANES;
    const AmxTiles tiles(block, wide);
    for (long top = 0; top < s.y_size[0]; top += taken) {
      const long count = std::min(taken, s.y_size[0] - top);
      tile.read(scratch<bfloat16>(Use::A, tile.size(taken)), image, top, count);
      for (long i = 0; i < count; i += 2)
        for (long v = 0; v < s.x_size[1]; v += block) {
          const KSegment<bfloat16> segment{tile.pixels + (i * tile.width + v) * s.y_channels,
                                           packed, depth};
          run_microkernel_amx(sums + (top + i) * line + v * wide, wide, start, &segment, 1,
                              {s.y_channels, 2, wide}, {tile.width * s.y_channels, line},
                              i + 1 < count, BLOCK);
        }
    }
    for (long u = 0; u < s.x_size[0]; ++u) {
      std::memset(total, 0, line * sizeof(float));
      for (long a = 0; a < s.kernel[0]; ++a)
        if (const long i = u + s.pad_low[0] - a; i >= 0 && i < s.y_size[0]) {
          const float* from = sums + i * line + a * s.x_channels;
          for (long n = 0; n < line; n += LANES)
            vec_f32(total + n) += vec_f32(from + n);
        }
      for (long v = 0; v < s.x_size[1]; ++v)
        for (long c = 0; c < s.x_channels; ++c)
          row[v * s.x_channels + c] = total[v * wide + c] + (bias ? bias[c] : 0);
      const long to = (image * s.x_size[0] + u) * s.x_size[1] * s.x_channels;
      store_row(out + to, row, offset(mask, to), s.x_size[1] * s.x_channels);
    }
  });
}

}  // namespace
