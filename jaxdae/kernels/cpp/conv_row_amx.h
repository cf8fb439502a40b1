// Convolutions to few channels on AMX tiles.

#pragma once

#include "pack.h"
#include "padded_tile.h"

namespace {

// A scatter to few channels on tiles, where the stride is 1: what a row of the grid gives, by every
// row of taps, is a convolution along it; the image is sums of those.
void scatter_rows(ffi::ThreadPool& pool, const Geometry& g, const Source<bfloat16>& grid,
                  const float* matrix, const float* bias, const bfloat16* gate, bfloat16* out) {
  const long deep = round_up(g.kernel[1] * g.outputs, 2 * TILE) / 2;  // words of a run of taps
  const long wide = round_up(g.kernel[0] * g.channels, 4);            // numbers for a pixel
  float* start = memory<float>(MATRIX, TILE + deep * wide);
  uint32_t* weights = (uint32_t*)start + TILE;
  std::memset(start, 0, (TILE + deep * wide) * sizeof(float));
  for (long a = 0; a < g.kernel[0]; ++a)
    for (long b = 0; b < g.kernel[1]; ++b)
      for (long c = 0; c < g.channels; ++c)
        for (long o = 0; o < g.outputs; ++o) {
          const long k = (g.kernel[1] - 1 - b) * g.outputs + o;  // the last tap is leftmost
          store((bfloat16*)(weights + k / 2 * wide + a * g.channels + c) + k % 2,
                matrix[g.first() + (a * g.kernel[1] + b) * g.tap_step() + c * g.channel_step() +
                       o * g.output_step()]);
        }
  const Window<bfloat16> whole(grid, 1, g.low[1] - g.kernel[1] + 1, g.image[1] + g.kernel[1] - 1,
                               0, 0);
  // So many rows of the grid that they stay in the nearest cache.
  const long taken = std::max(2L, 8192 / (whole.width * g.outputs) / 2 * 2);
  const long tile = share(g.image[1], TILE), line = round_up(g.image[1], tile) * wide;
  parallel(pool, g.batch, [&](long image) {
    Window<bfloat16> window = whole;
    float* sums = memory<float>(SUMS, (g.grid[0] + 2) * line);
    float* together = memory<float>(COLUMNS, line + g.image[1] * g.channels + LANES);
    float* row = together + line + LANES;
    const Tiles tiles(tile, wide);
    for (long top = 0; top < g.grid[0]; top += taken) {
      const long count = std::min(taken, g.grid[0] - top);
      window.read(memory<bfloat16>(LEFT, window.size(taken)), image, top, count);
      for (long i = 0; i < count; i += 2)
        for (long v = 0; v < g.image[1]; v += tile) {
          const Term<bfloat16> term{window.pixels + (i * window.width + v) * g.outputs, weights,
                                    deep};
          multiply_tiles(sums + (top + i) * line + v * wide, start, &term, 1,
                         {g.outputs, 2, wide, wide}, {window.width * g.outputs, line},
                         i + 1 < count, TILE);
        }
    }
    for (long u = 0; u < g.image[0]; ++u) {
      std::memset(together, 0, line * sizeof(float));
      for (long a = 0; a < g.kernel[0]; ++a)
        if (const long i = u + g.low[0] - a; i >= 0 && i < g.grid[0]) {
          const float* from = sums + i * line + a * g.channels;
          for (long n = 0; n < line; n += LANES)
            *(Floats*)(together + n) += *(const Floats*)(from + n);
        }
      for (long v = 0; v < g.image[1]; ++v)
        for (long c = 0; c < g.channels; ++c)
          row[v * g.channels + c] = together[v * wide + c] + (bias ? bias[c] : 0);
      const long to = (image * g.image[0] + u) * g.image[1] * g.channels;
      write(out + to, row, gate ? gate + to : nullptr, g.image[1] * g.channels);
    }
  });
}

}  // namespace
