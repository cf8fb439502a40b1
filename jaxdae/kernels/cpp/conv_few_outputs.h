// Convolutions to few output channels (small N), such as the last layer's one.
//
// Outputs are too few to fill a vector, so the vectors run along K, over input channels, and each
// sum is added up across its lanes at the end.

#pragma once

#include <numeric>

#include "pack.h"
#include "padded_tile.h"

namespace {

template <class T>
bool few_outputs_applies(long outputs) {
  return outputs <= LANES / 4 && !use_amx<T>();
}

// Any shape: LANES neighbouring positions at a time, each with a vector of sums.
template <class T>
void small_n_conv(ffi::ThreadPool& pool, const std::vector<Polyphase>& components,
                  const MaskedView<T>& source, const WeightView<T>& weights, const float* bias,
                  const T* mask, T* out, long batch, long height, long width) {
  constexpr long VECTOR = LANES * K_PER_WORD<T>;  // elements
  const long outputs = weights.outputs, step = components[0].step;
  const auto vectors = [&](const KernelRow& row) {
    return ceil_div(row.taps * source.channels, VECTOR);
  };
  std::vector<long> depth;  // vectors of a component
  for (const Polyphase& component : components) {
    depth.push_back(0);
    for (const KernelRow& row : component.rows) depth.back() += vectors(row);
  }
  const long total = std::accumulate(depth.begin(), depth.end(), 0L) * outputs * VECTOR;

  // Pack: for each component and output, the kernel rows padded to whole vectors.
  T* packed = scratch<T>(Use::WEIGHTS, total);
  std::memset(packed, 0, total * sizeof(T));
  T* to = packed;
  for (const Polyphase& component : components)
    for (long n = 0; n < outputs; ++n)
      for (const KernelRow& row : component.rows) {
        for (long k = 0; k < row.taps * source.channels; ++k)
          store(to + k, weights.rows_of(row, k / source.channels)[
                            k % source.channels * weights.k_step + n * weights.n_step]);
        to += vectors(row) * VECTOR;
      }

  const auto compute = [&](const PaddedTile<T>& tile, long image, long top, long bottom) {
    float* sums = scratch<float>(Use::C, (bottom - top) * step * width * outputs + LANES);
    const long row_step = tile.step * source.channels;
    const T* w_first = packed;
    for (size_t p = 0; p < components.size(); ++p) {
      const Polyphase& component = components[p];
      for (long n = 0; n < outputs; ++n, w_first += depth[p] * VECTOR)
        for (long i = top; i < std::min(bottom, component.size[0]); ++i) {
          float* line = sums + ((i - top) * step + component.first[0]) * width * outputs + n;
          for (long j = 0; j < component.size[1]; j += LANES) {
            VecF32 sum[LANES] = {};
#pragma GCC unroll 4
            for (int half = 0; half < LANES; half += LANES / 2) {
              const T* w = w_first;
              for (const KernelRow& row : component.rows) {
                const T* x = tile.at(row, i, j) + half * row_step;
                for (long k = vectors(row); k; --k, x += VECTOR, w += VECTOR)
#pragma GCC unroll 16
                  for (int m = 0; m < LANES / 2; ++m)
                    sum[half + m] = multiply_add<T>(sum[half + m], vec_u32(x + m * row_step),
                                                    vec_u32(w));
              }
            }
            const VecF32 result = horizontal_sums(sum) + (bias ? bias[n] : 0.0f);
            float* pixel = line + (j * step + component.first[1]) * outputs;
            if (step * outputs == 1)
              vec_f32(pixel) = result;
            else
              for (long m = 0; m < std::min<long>(LANES, component.size[1] - j); ++m)
                pixel[m * step * outputs] = result[m];
          }
        }
    }
    const long first = top * step, end = std::min(height, bottom * step);
    const long pixel = (image * height + first) * width * outputs;
    store_row(out + pixel, sums, offset(mask, pixel), (end - first) * width * outputs);
  };
  const bool worth = batch * components[0].size[0] * components[0].size[1] * total > 6 << 20;
  for_padded_tiles(pool, components, source, batch, worth, compute);
}

// Stride 1 and kernel rows of 3 taps, whole vectors of channels: row streaming. Each pixel of a row
// is read once and multiplied by all 3 taps, for the 3 positions that see it.

constexpr int TAPS = 3, MAX_KERNEL_ROWS = 8;
constexpr int SPAN = LANES - LANES / 8;  // positions at a time; 28 is a multiple, or of half of it

template <class T>
bool row_streaming_applies(const std::vector<Polyphase>& components,
                           const MaskedView<T>& source) {
  const Polyphase& component = components[0];
  if (components.size() > 1 || component.step > 1 || component.source_step > 1 ||
      component.size[1] < SPAN || component.rows.size() > MAX_KERNEL_ROWS)
    return false;
  for (const KernelRow& row : component.rows)
    if (row.taps != TAPS || row.dx < -1 || component.size[1] + row.dx >= source.width) return false;
  return source.channels % (LANES * K_PER_WORD<T>) == 0;
}

// The sums of M neighbouring positions, over `rows`. The pixel before the first position's own, or
// behind the last one's, may be outside of the image: then `left` or `right` is false.
template <class T, int M, bool MASKED>
inline VecF32 stream_rows(const T* const* rows, const T* const* masks, const T* weights,
                          long row_count, long first, bool left, bool right, long channels) {
  constexpr long VECTOR = LANES * K_PER_WORD<T>;
  VecF32 sum[LANES] = {};
  for (long row = 0; row < row_count; ++row, weights += TAPS * channels)
    for (long c = 0; c < channels; c += VECTOR) {
      VecU32 w[TAPS];
#pragma GCC unroll 3
      for (int tap = 0; tap < TAPS; ++tap) w[tap] = vec_u32(weights + tap * channels + c);
      const T *x = rows[row] + first * channels + c, *mask = masks[row] + first * channels + c;
#pragma GCC unroll 32
      for (int p = 0; p < M + TAPS - 1; ++p) {
        if ((p > 0 || left) && (p < M + TAPS - 2 || right)) {
          VecU32 pixel = vec_u32(x);
          if (MASKED) pixel = apply_relu_mask(pixel, mask);
#pragma GCC unroll 3
          for (int tap = 0; tap < TAPS; ++tap)
            if (p >= tap && p - tap < M)
              sum[p - tap] = multiply_add<T>(sum[p - tap], pixel, w[tap]);
        }
        x += channels, mask += channels;
        asm("" : "+r"(x), "+r"(mask));  // else GCC keeps all addresses, and has no registers left
      }
    }
  return horizontal_sums(sum);
}

template <class T>
void row_streaming_conv(ffi::ThreadPool& pool, const Polyphase& component,
                        const MaskedView<T>& source, const WeightView<T>& weights,
                        const float* bias, const T* mask, T* out, long batch, long height,
                        long width) {
  const long outputs = weights.outputs, channels = source.channels;
  const long kernel_rows = component.rows.size(), size = kernel_rows * TAPS * channels;
  const long line = source.width * channels;
  T *packed = scratch<T>(Use::WEIGHTS, outputs * size), *to = packed;
  for (long n = 0; n < outputs; ++n)
    for (const KernelRow& row : component.rows)
      for (long k = 0; k < TAPS * channels; ++k, ++to)
        store(to, weights.rows_of(row, k / channels)[k % channels * weights.k_step +
                                                     n * weights.n_step]);
  // A mask of bfloat16 costs more than a float's: keep the masked row for all that read it.
  const bool keep = source.mask && sizeof(T) == 2;
  const auto f = source.mask && !keep ? stream_rows<T, SPAN, true> : stream_rows<T, SPAN, false>;
  const long taken = std::clamp<long>(131072 / sizeof(T) / line, 1, height);
  const long tiles = ceil_div(height, taken);
  const auto compute = [&](long item) {
    const long image = item / tiles, top = item % tiles * taken;
    float* sums = scratch<float>(Use::C, width * outputs + LANES);
    T* kept = scratch<T>(Use::A, keep ? MAX_KERNEL_ROWS * line : 0);
    long kept_row[MAX_KERNEL_ROWS];
    std::fill_n(kept_row, MAX_KERNEL_ROWS, -1);
    for (long i = top; i < std::min(height, top + taken); ++i) {
      const T *rows[MAX_KERNEL_ROWS], *masks[MAX_KERNEL_ROWS];
      long first = kernel_rows, count = 0;  // those that are inside of the image
      for (long r = 0; r < kernel_rows; ++r)
        if (const long row = i + component.rows[r].dy; row >= 0 && row < source.height) {
          const long from = (image * source.height + row) * line;
          rows[count] = source.x + from;
          masks[count] = (source.mask ? source.mask : source.x) + from;
          if (keep) {
            T* here = kept + row % MAX_KERNEL_ROWS * line;
            if (std::exchange(kept_row[row % MAX_KERNEL_ROWS], row) != row)
              copy_masked(here, rows[count], masks[count], line);
            rows[count] = here;
          }
          ++count;
          first = std::min(first, r);
        }
      for (long n = 0; n < outputs; ++n)
        for (long next = 0, j; next < width; next += SPAN) {
          j = std::min(next, width - SPAN);  // the last positions once more, if need be
          const long from = j + component.rows[0].dx;
          const VecF32 result =
              f(rows, masks, packed + n * size + first * TAPS * channels, count, from, from >= 0,
                from + SPAN + TAPS - 2 < source.width, channels) +
              (bias ? bias[n] : 0.0f);
          if (outputs == 1)
            vec_f32(sums + j) = result;
          else
            for (long m = 0; m < SPAN; ++m) sums[(j + m) * outputs + n] = result[m];
        }
      const long pixel = (image * height + i) * width * outputs;
      store_row(out + pixel, sums, offset(mask, pixel), width * outputs);
    }
  };
  parallel_for(pool, batch * tiles, compute, batch * height * width * outputs * size > 6 << 20);
}

}  // namespace
