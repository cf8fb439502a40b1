// The general convolution: an implicit GEMM, forward or data gradient.
//
// A's rows are patches, read where their pixels lie in a padded tile; B is the packed weights. Each
// kernel row is one segment of K, because its taps are neighbours in the tile. The data gradient
// does the same for each polyphase component.

#pragma once

#include <optional>

#include "pack.h"
#include "padded_tile.h"

namespace {

template <class T>
void implicit_gemm(ffi::ThreadPool& pool, const std::vector<Polyphase>& components,
                   const MaskedView<T>& source, const WeightView<T>& weights, const float* bias,
                   const T* mask, T* out, long batch, long height, long width) {
  // Plan.
  const bool amx = use_amx<T>();
  const long outputs = weights.outputs, panels = ceil_div(outputs, NR);
  const long positions = batch * components[0].size[0] * components[0].size[1];
  const bool in_place = weights.in_place(positions);
  std::vector<long> depth, begin;  // of each component: words of K, and where its panels begin
  long packed_size = 0;
  for (const Polyphase& component : components) {
    depth.push_back(packed_k<T>(component, source.channels));
    begin.push_back(packed_size);
    packed_size += depth.back() * NR * panels;
  }
  const bool worth = positions * packed_size * K_PER_WORD<T> +
                         32 * batch * height * width * outputs > 6 << 20;

  // Pack.
  float* start = scratch<float>(Use::WEIGHTS, panels * NR + packed_size);
  uint32_t* packed = (uint32_t*)start + panels * NR;
  for (long n = 0; n < panels * NR; ++n) start[n] = bias && n < outputs ? bias[n] : 0;
  parallel_for(
      pool, in_place ? 0 : components.size() * panels,
      [&](long item) {
        const long p = item / panels, first = item % panels * NR;
        weights.pack(packed + begin[p] + first * depth[p], components[p], first);
      },
      worth);

  // Compute, and store: a block is `by` rows of positions, and at most `most` in a row.
  const long by = amx ? 2 : 1, most = amx ? BLOCK : MR;
  long widest = 1;
  for (const Polyphase& c : components) widest = std::max(widest, block_size(c.size[1], most));
  const auto compute = [&](const PaddedTile<T>& tile, long image, long top, long bottom) {
    float* sums = scratch<float>(Use::C, 2 * BLOCK * NR);
    std::optional<AmxTiles> tiles;
    if (amx) tiles.emplace(widest);
    std::vector<KSegment<T>> segments;
    const long lda = tile.step * source.channels, ldb = in_place ? weights.k_step : NR;
    const Strides strides{lda, K_PER_WORD<T>, ldb};

    const auto gather_segments = [&](const Polyphase& component, const uint32_t* b, long first,
                                     long i, long j) {
      segments.clear();
      for (const KernelRow& row : component.rows) {
        const long count = packed_k<T>(row, source.channels);
        if (!in_place) segments.push_back({tile.at(row, i, j), b, count});
        for (long pixel = 0; pixel < row.taps && in_place; ++pixel)
          segments.push_back({tile.at(row, i, j) + pixel * source.channels,
                              (const uint32_t*)weights.rows_of(row, pixel) + first,
                              source.channels});
        b += count * NR;
      }
    };
    for (size_t p = 0; p < components.size(); ++p) {
      const Polyphase& component = components[p];
      const long right = component.step * outputs, down = right * width;  // to the next position
      for (long first = 0; first < outputs; first += NR) {
        const uint32_t* b = packed + begin[p] + first * depth[p];
        const long columns = std::min<long>(NR, outputs - first);
        const long end = std::min(bottom, component.size[0]);
        const auto block = [&](long i, long j, long count) {
          gather_segments(component, b, first, i, j);
          const long to = ((image * height + i * component.step + component.first[0]) * width +
                           j * component.step + component.first[1]) *
                              outputs +
                          first;
          if (amx) {
            run_microkernel_amx(sums, NR, start + first,
                                (const KSegment<bfloat16>*)segments.data(), segments.size(),
                                strides, {lda * tile.width, BLOCK * NR}, i + 1 < end, columns);
          } else if (columns % LANES == 0) {  // whole vectors are stored where they belong
            run_microkernel<T>(count, columns,
                               StridedRows<T>{out + to, right, offset(mask, to)},
                               StartRows{start + first, 0}, segments.data(), segments.size(),
                               strides);
            return;
          } else {
            run_microkernel<T>(count, columns, StridedRows<float>{sums, NR},
                               StartRows{start + first, 0}, segments.data(), segments.size(),
                               strides);
          }
          for (long line = 0; line < std::min(by, end - i); ++line)
            for (long m = 0; m < count; ++m) {
              const long pixel = to + line * down + m * right;
              store_row(out + pixel, sums + (line * BLOCK + m) * NR, offset(mask, pixel), columns);
            }
        };
        for (long i = top; i < end; i += by)
          for_blocks(component.size[1], most, [&](long j, long count) { block(i, j, count); });
      }
    }
  };
  for_padded_tiles(pool, components, source, batch, worth, compute);
}

}  // namespace
