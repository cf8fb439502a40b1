// Convolutions as products of matrices.

#pragma once

#include <optional>

#include "pack.h"
#include "padded_tile.h"

namespace {

// A gather or a scatter: what is written from what is read, a few rows of positions at a time.
template <class T>
void apply(ffi::ThreadPool& pool, const std::vector<Phase>& phases, const Source<T>& source,
           const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
           long height, long width) {
  const long outputs = matrix.outputs, panels = (outputs + PANEL - 1) / PANEL;
  const bool in_place = matrix.in_place(batch * phases[0].size[0] * phases[0].size[1]);
  std::vector<long> depths, offsets;
  long total = 0;
  for (const Phase& phase : phases) {
    depths.push_back(words<T>(phase, source.channels));
    offsets.push_back(total);
    total += depths.back() * PANEL * panels;
  }
  float* start = memory<float>(MATRIX, panels * PANEL + total);  // the sums begin with the bias
  uint32_t* packed = (uint32_t*)start + panels * PANEL;
  for (long n = 0; n < panels * PANEL; ++n) start[n] = bias && n < outputs ? bias[n] : 0;
  const long products = batch * phases[0].size[0] * phases[0].size[1] * total * PER_WORD<T>;
  const bool worth = products + 32 * batch * height * width * outputs > 6 << 20;
  parallel(
      pool, in_place ? 0 : phases.size() * panels,
      [&](long item) {
        const long p = item / panels, first = item % panels * PANEL;
        matrix.pack(packed + offsets[p] + first * depths[p], phases[p], first);
      },
      worth);
  const long most = tiled<T>() ? TILE : ROWS;  // positions at a time
  long widest = 1;
  for (const Phase& phase : phases) widest = std::max(widest, share(phase.size[1], most));
  const auto some = [&](const Window<T>& window, long image, long top, long bottom) {
    float* room = memory<float>(SUMS, 2 * TILE * PANEL);
    std::optional<Tiles> tiles;
    if (tiled<T>()) tiles.emplace(widest);
    std::vector<Term<T>> terms;
    for (size_t p = 0; p < phases.size(); ++p) {
      const Phase& phase = phases[p];
      for (long panel = 0; panel < panels; ++panel) {
        const long first = panel * PANEL, columns = std::min<long>(PANEL, outputs - first);
        const long until = std::min(bottom, phase.size[0]);
        const long by = tiled<T>() ? 2 : 1;  // rows of positions
        for (long i = top; i < until; i += by) {
          const auto part = [&](long j, long count) {
            const uint32_t* b = packed + offsets[p] + panel * depths[p] * PANEL;
            terms.clear();
            for (const Run& run : phase.runs) {
              const long deep = words<T>(run, source.channels);
              if (!in_place) terms.push_back({window.at(run, i, j), b, deep});
              for (long pixel = 0; pixel < run.columns && in_place; ++pixel)
                terms.push_back({window.at(run, i, j) + pixel * source.channels,
                                 (const uint32_t*)matrix.rows_of(run, pixel) + first,
                                 source.channels});
              b += deep * PANEL;
            }
            const long apart = phase.step * outputs, down = phase.step * width * outputs;
            const long to = ((image * height + i * phase.step + phase.first[0]) * width +
                             j * phase.step + phase.first[1]) *
                                outputs +
                            first;
            const long row = window.step * source.channels;
            const long b_step = in_place ? matrix.row : PANEL;
            const Strides strides{row, PER_WORD<T>, b_step, PANEL};
            if (tiled<T>()) {
              const Second second{row * window.width, TILE * PANEL};
              multiply_tiles(room, start + first, (const Term<bfloat16>*)terms.data(),
                             terms.size(), strides, second, i + 1 < until, columns);
            } else if (columns % LANES == 0) {
              // Whole vectors are written where they belong.
              choose<T, T>(count, columns)(out + to, start + first, terms.data(), terms.size(),
                                           {row, PER_WORD<T>, b_step, apart},
                                           gate ? gate + to : nullptr);
              return;
            } else {
              choose<T>(count, columns)(room, start + first, terms.data(), terms.size(), strides,
                                        nullptr);
            }
            for (long line = 0; line < std::min(by, until - i); ++line)
              for (long m = 0; m < count; ++m) {
                const long at = to + line * down + m * apart;
                write(out + at, room + (line * TILE + m) * PANEL, gate ? gate + at : nullptr,
                      columns);
              }
          };
          by_parts(phase.size[1], part, most);
        }
      }
    }
  };
  by_window(pool, phases, source, batch, worth, some);
}

}  // namespace
