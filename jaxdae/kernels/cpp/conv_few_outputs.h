// Convolutions to few channels.

#pragma once

#include <numeric>

#include "pack.h"
#include "padded_tile.h"

namespace {

// The same for few outputs, too few to be the lanes of vectors: the inputs are. Each position has a
// vector of sums, which are added up at its end.
template <class T>
void apply_few(ffi::ThreadPool& pool, const std::vector<Phase>& phases, const Source<T>& source,
               const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
               long height, long width) {
  constexpr long WIDE = LANES * PER_WORD<T>;
  const long outputs = matrix.outputs, step = phases[0].step;
  const auto vectors = [&](const Run& run) {
    return (run.columns * source.channels + WIDE - 1) / WIDE;
  };
  std::vector<long> depths;  // vectors of a phase
  for (const Phase& phase : phases) {
    depths.push_back(0);
    for (const Run& run : phase.runs) depths.back() += vectors(run);
  }
  const long total = std::accumulate(depths.begin(), depths.end(), 0L) * outputs * WIDE;
  T* packed = memory<T>(MATRIX, total);
  std::memset(packed, 0, total * sizeof(T));
  T* to = packed;
  for (const Phase& phase : phases)
    for (long n = 0; n < outputs; ++n)
      for (const Run& run : phase.runs) {
        for (long k = 0; k < run.columns * source.channels; ++k)
          store(to + k, matrix.matrix[(run.tap + k / source.channels * run.tap_step) *
                                          matrix.tap_step +
                                      k % source.channels * matrix.row + n * matrix.column]);
        to += vectors(run) * WIDE;
      }
  const auto some = [&](const Window<T>& window, long image, long top, long bottom) {
    float* sums = memory<float>(SUMS, (bottom - top) * step * width * outputs + LANES);
    const T* weights = packed;
    for (size_t p = 0; p < phases.size(); ++p) {
      const Phase& phase = phases[p];
      for (long n = 0; n < outputs; ++n, weights += depths[p] * WIDE)
        for (long i = top; i < std::min(bottom, phase.size[0]); ++i) {
          float* line = sums + ((i - top) * step + phase.first[0]) * width * outputs + n;
          for (long j = 0; j < phase.size[1]; j += LANES) {
            Floats sum[LANES] = {};
            const long row = window.step * source.channels;
#pragma GCC unroll 4
            for (int half = 0; half < LANES; half += LANES / 2) {
              const T* w = weights;
              for (const Run& run : phase.runs) {
                const T* x = window.at(run, i, j) + half * row;
                for (long k = vectors(run); k; --k, x += WIDE, w += WIDE)
#pragma GCC unroll 16
                  for (int m = 0; m < LANES / 2; ++m)
                    sum[half + m] = multiply_add<T>(sum[half + m], *(const Words*)(x + m * row),
                                                    *(const Words*)w);
              }
            }
            const Floats together = sums_of_lanes(sum) + (bias ? bias[n] : 0.0f);
            float* at = line + (j * step + phase.first[1]) * outputs;
            if (step * outputs == 1)
              *(Floats*)at = together;
            else
              for (long m = 0; m < std::min<long>(LANES, phase.size[1] - j); ++m)
                at[m * step * outputs] = together[m];
          }
        }
    }
    const long first = top * step, until = std::min(height, bottom * step);
    const long at = (image * height + first) * width * outputs;
    write(out + at, sums, gate ? gate + at : nullptr, (until - first) * width * outputs);
  };
  const bool worth = batch * phases[0].size[0] * phases[0].size[1] * total > 6 << 20;
  by_window(pool, phases, source, batch, worth, some);
}

// The sums of M positions beside each other, for runs of TAPS columns and whole vectors of
// channels: what is read serves all taps of a run. Of the columns, the first or the last may not be
// there.
constexpr int TAPS = 3, MOST_RUNS = 8;
template <class T, int M, bool GATED>
inline Floats sums_along(const T* const* rows, const T* const* gates, const T* weights, long runs,
                         long at, bool left, bool right, long channels) {
  constexpr long WIDE = LANES * PER_WORD<T>;
  Floats sum[LANES] = {};
  for (long run = 0; run < runs; ++run, weights += TAPS * channels)
    for (long c = 0; c < channels; c += WIDE) {
      Words w[TAPS];
#pragma GCC unroll 3
      for (int tap = 0; tap < TAPS; ++tap) w[tap] = *(const Words*)(weights + tap * channels + c);
      const T *x = rows[run] + at * channels + c, *gate = gates[run] + at * channels + c;
#pragma GCC unroll 32
      for (int p = 0; p < M + TAPS - 1; ++p) {
        if ((p > 0 || left) && (p < M + TAPS - 2 || right)) {
          Words numbers = *(const Words*)x;
          if (GATED) numbers = passed(numbers, gate);
#pragma GCC unroll 3
          for (int tap = 0; tap < TAPS; ++tap)
            if (p >= tap && p - tap < M)
              sum[p - tap] = multiply_add<T>(sum[p - tap], numbers, w[tap]);
        }
        x += channels, gate += channels;
        asm("" : "+r"(x), "+r"(gate));  // else GCC keeps all places, for which it has no registers
      }
    }
  return sums_of_lanes(sum);
}
constexpr int SPAN = LANES - LANES / 8;  // positions at a time, of which there are 2 or 4 in 28

// Whether this is so.
template <class T>
bool along(const std::vector<Phase>& phases, const Source<T>& source) {
  const Phase& phase = phases[0];
  if (phases.size() > 1 || phase.step > 1 || phase.source_step > 1 || phase.size[1] < SPAN ||
      phase.runs.size() > MOST_RUNS)
    return false;
  for (const Run& run : phase.runs)
    if (run.columns != TAPS || run.right < -1 || phase.size[1] + run.right >= source.width)
      return false;
  return source.channels % (LANES * PER_WORD<T>) == 0;
}

// So few outputs of stride 1.
template <class T>
void apply_along(ffi::ThreadPool& pool, const Phase& phase, const Source<T>& source,
                 const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
                 long height, long width) {
  const long outputs = matrix.outputs, channels = source.channels, runs = phase.runs.size();
  const long size = runs * TAPS * channels, line = source.width * channels;
  T *weights = memory<T>(MATRIX, outputs * size), *to = weights;
  for (long n = 0; n < outputs; ++n)
    for (const Run& run : phase.runs)
      for (long k = 0; k < TAPS * channels; ++k, ++to)
        store(to, matrix.rows_of(run, k / channels)[k % channels * matrix.row + n * matrix.column]);
  // Gates of bfloat16 cost more than to keep what passes them, for all runs that see it.
  const bool keeps = source.gate && sizeof(T) == 2;
  const auto f = source.gate && !keeps ? sums_along<T, SPAN, true> : sums_along<T, SPAN, false>;
  const long taken = std::clamp<long>(131072 / sizeof(T) / line, 1, height);
  const long parts = (height + taken - 1) / taken;
  const auto some = [&](long item) {
    const long image = item / parts, top = item % parts * taken;
    float* sums = memory<float>(SUMS, width * outputs + LANES);
    T* kept = memory<T>(LEFT, keeps ? MOST_RUNS * line : 0);
    long held[MOST_RUNS];  // which rows those are
    std::fill_n(held, MOST_RUNS, -1);
    for (long i = top; i < std::min(height, top + taken); ++i) {
      const T *rows[MOST_RUNS], *gates[MOST_RUNS];
      long first = runs, count = 0;  // of the runs whose rows are in the image
      for (long run = 0; run < runs; ++run)
        if (const long row = i + phase.runs[run].down; row >= 0 && row < source.height) {
          const long from = (image * source.height + row) * line;
          rows[count] = source.x + from;
          gates[count] = (source.gate ? source.gate : source.x) + from;
          if (keeps) {
            T* here = kept + row % MOST_RUNS * line;
            if (std::exchange(held[row % MOST_RUNS], row) != row)
              copy(here, rows[count], gates[count], line);
            rows[count] = here;
          }
          ++count;
          first = std::min(first, run);
        }
      for (long n = 0; n < outputs; ++n)
        for (long next = 0, j; next < width; next += SPAN) {
          j = std::min(next, width - SPAN);  // the last ones once more, if need be
          const long at = j + phase.runs[0].right;
          const Floats together =
              f(rows, gates, weights + n * size + first * TAPS * channels, count, at, at >= 0,
                at + SPAN + TAPS - 2 < source.width, channels) +
              (bias ? bias[n] : 0.0f);
          if (outputs == 1)
            *(Floats*)(sums + j) = together;
          else
            for (long m = 0; m < SPAN; ++m) sums[(j + m) * outputs + n] = together[m];
        }
      const long at = (image * height + i) * width * outputs;
      write(out + at, sums, gate ? gate + at : nullptr, width * outputs);
    }
  };
  parallel(pool, batch * parts, some, batch * height * width * outputs * size > 6 << 20);
}

template <class T>
bool few(long outputs) {
  return outputs <= LANES / 4 && !tiled<T>();
}

}  // namespace
