// The gradient of the kernel on AMX tiles.

#pragma once

#include <optional>

#include "weight_grad.h"

namespace {

// The same on tiles. What a product sums over must be neighbours there, in pairs; these are the
// positions. So an image becomes planes, one for each channel and each remainder of a pixel's place
// modulo the stride, in which a tap is only a shift. The rows of a plane are longer than those of
// the grid, by what the taps reach; in between, and between images, the grid counts as zero.
void correlate_tiles(ffi::ThreadPool& pool, const Geometry& g, const Source<bfloat16>& image,
                     const Source<bfloat16>& grid, float* out) {
  const long s = g.stride;
  struct Tap {
    long plane, shift;
  };
  std::vector<Tap> places[2];  // of the taps of an axis
  long least[2], reach[2];
  for (int axis = 0; axis < 2; ++axis) {
    for (long tap = 0; tap < g.kernel[axis]; ++tap) {
      const long at = tap - g.low[axis], plane = (at % s + s) % s;
      places[axis].push_back({plane, (at - plane) / s});
    }
    least[axis] = (-g.low[axis] - places[axis][0].plane) / s;
    reach[axis] = places[axis].back().shift - least[axis];
  }
  const long pitch = round_up(g.grid[1] + reach[1], 2);
  const long channels = round_up(g.channels, TILE), outputs = round_up(g.outputs, TILE);
  const long filled = g.taps() * g.channels;
  const bool together = filled <= PANEL;  // all numbers of a patch are rows of one product
  // A chunk: rows of one image, or several whole ones, so that the sums pay.
  const long taken =
      std::clamp(131072 / (s * s * channels * pitch) - reach[0], 1L, g.grid[0]);
  const long several =
      taken < g.grid[0] ? 1 : std::clamp(256 / ((taken + reach[0]) * pitch), 1L, g.batch);
  const long chunks = (g.grid[0] + taken - 1) / taken;
  const long all = (g.batch + several - 1) / several * chunks;
  const long parts = std::min<long>(PARTS, all);
  const long most = round_up(several * (taken + reach[0]) * pitch, 2 * TILE);  // positions
  const long length = most + round_up(reach[0] * pitch + reach[1], 2 * TILE);  // of a plane
  const Window<bfloat16> whole(image, s, s * least[1], s * pitch, s * least[0],
                               s * (least[0] + reach[0]) + s - 1);
  const long one = whole.size(taken);
  const long panels = (outputs + PANEL - 1) / PANEL, across = (channels + PANEL - 1) / PANEL;
  const long size = (together ? 1 : g.taps() * across) * panels * PANEL * PANEL;
  float* totals = memory<float>(TOTALS, parts * size);
  parallel(pool, parts, [&](long part) {
    float* sums = totals + part * size;
    std::memset(sums, 0, size * sizeof(float));
    Window<bfloat16> window = whole;
    bfloat16* pixels = memory<bfloat16>(RAW, several * one + (pitch + 1) * g.outputs);
    bfloat16* row = pixels + several * one;
    bfloat16* planes = memory<bfloat16>(PLANES, channels * length);
    bfloat16* patches = memory<bfloat16>(LEFT, together ? PANEL * most : 0);
    uint32_t* right = memory<uint32_t>(RIGHT, most / 2 * panels * PANEL);
    std::memset(row + g.grid[1] * g.outputs, 0,
                (pitch + 1 - g.grid[1]) * g.outputs * sizeof(bfloat16));
    std::optional<Tiles> shape;
    shape.emplace();
    std::vector<long> places_of_words;  // in the pixels
    for (long chunk = all * part / parts; chunk < all * (part + 1) / parts; ++chunk) {
      const long first = chunk / chunks * several, top = chunk % chunks * taken;
      const long count = std::min(taken, g.grid[0] - top), rows = count + reach[0];
      const long images = std::min(g.batch, first + several) - first;
      places_of_words.clear();
      for (long number = 0; number < images; ++number) {
        window.read(pixels + number * one, first + number, top, count);
        for (long i = 0; i < rows; ++i) {
          for (long j = 0; j < pitch; j += 2)
            places_of_words.push_back(number * one + (s * i * whole.width + s * j) * g.channels);
          const long from = ((first + number) * g.grid[0] + top + i) * g.grid[1] * g.outputs;
          if (i < count)
            copy(row, grid.x + from, grid.gate ? grid.gate + from : nullptr,
                 g.grid[1] * g.outputs);
          for (long n = 0; n < g.outputs; n += PANEL) {
            const long here = i < count ? std::min<long>(PANEL, g.outputs - n) : 0;
            uint32_t* to = right + (n / PANEL * most + (number * rows + i) * pitch) / 2 * PANEL;
            for (long j = 0; j < pitch; j += 2, to += PANEL) {
              pair_up(to, row + j * g.outputs + n, here, g.outputs);
              std::memset(to + here, 0, (PANEL - here) * 4);
            }
          }
        }
      }
      const long total = places_of_words.size(), deep = round_up(total, TILE);
      for (long n = 0; n < panels; ++n)
        std::memset(right + (n * most / 2 + total) * PANEL, 0, (deep - total) * PANEL * 4);
      places_of_words.resize(deep, places_of_words.back());
      // What lies behind is read by the last taps, and multiplied by zero: it must be a number.
      for (long c = 0; c < channels; ++c)
        std::memset(planes + c * length + 2 * deep, 0, (length - most) * sizeof(bfloat16));
      auto shift = [&](long tap) {
        const Tap &down = places[0][tap / g.kernel[1]], &right = places[1][tap % g.kernel[1]];
        return (down.shift - least[0]) * pitch + right.shift - least[1];
      };
      auto product = [&](const bfloat16* a, long apart, long count, long n, float* sum) {
        const Term<bfloat16> term{a, right + n * (most / 2), deep};
        multiply_tiles(sum, sum, &term, 1, {apart, 2, PANEL, PANEL},
                       {TILE * apart, TILE * PANEL}, count > TILE, outputs - n);
      };
      for (long plane = 0; plane < s * s; ++plane) {
        const bfloat16* corner = pixels + (plane / s * whole.width + plane % s) * g.channels;
        const long apart = s * g.channels;
        if (g.channels <= 3)
          for (long c = 0; c < g.channels; ++c)
            for (long word = 0; word < deep; ++word)
              pair_up((uint32_t*)(planes + c * length) + word, corner + places_of_words[word] + c,
                      1, apart);
        else
          for (long word = 0; word < deep; word += TILE)
            for (long c = 0; c < channels; c += TILE)
              transpose((uint32_t*)(planes + c * length) + word, length / 2, [&](int i) {
                return paired(corner + places_of_words[word + i] + c, apart);
              });
        // What is near stays near: all taps that see some channels of this plane.
        for (long n = 0; n < (together ? 1 : outputs); n += PANEL)
          for (long c = 0; c < (together ? 1 : channels); c += PANEL)
            for (long tap = 0; tap < g.taps(); ++tap) {
              if (places[0][tap / g.kernel[1]].plane * s + places[1][tap % g.kernel[1]].plane !=
                  plane)
                continue;
              const bfloat16* a = planes + c * length + shift(tap);
              if (!together)
                product(a, length, channels - c, n,
                        sums + ((tap * across + c / PANEL) * panels + n / PANEL) * PANEL * PANEL);
              for (long row = 0; together && row < g.channels; ++row)
                std::memcpy(patches + (tap * g.channels + row) * most, a + row * length, deep * 4);
            }
      }
      for (long n = 0; together && n < outputs; n += PANEL)
        product(patches, most, filled, n, sums + n * PANEL);
    }
  });
  add_up(pool, g, totals, parts, size, out, [&](long number, long n) {
    const long c = together ? number : number % g.channels,
               block = together ? 0 : number / g.channels * across + c / PANEL;
    return ((block * panels + n / PANEL) * PANEL + c % PANEL) * PANEL;
  });
}

}  // namespace
