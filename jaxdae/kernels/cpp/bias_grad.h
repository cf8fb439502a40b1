// The gradient of the bias.

#pragma once

#include "parallel_for.h"
#include "scratch.h"

namespace {

// Images summed to a number for each channel, the gradient of a bias.
template <class T>
void total(ffi::ThreadPool& pool, const T* x, long positions, long channels, float* out) {
  constexpr int N = LANES * PER_WORD<T>, AT_ONCE = 4;
  // Few channels are taken as those of several positions that are neighbours.
  const long single = channels;
  while (channels < N && positions % 2 == 0) positions /= 2, channels *= 2;
  const long parts = std::clamp(positions / 64, 1L, 8L), blocks = (channels + 511) / 512;
  float* totals = memory<float>(TOTALS, parts * channels);
  const auto some = [&](long item) {
    const long part = item / blocks, block = item % blocks;
    float* sums = totals + part * channels;
    const long first = positions * part / parts, last = positions * (part + 1) / parts;
    long c = block * 512;
    const long until = std::min(channels, c + 512);
    for (; c + N <= until; c += N) {
      Floats sum[AT_ONCE][PER_WORD<T>] = {};
      auto add = [&](int n, long i) {
        const Words words = *(const Words*)(x + i * channels + c);
        if (sizeof(T) == 4) {
          sum[n][0] += (Floats)words;
        } else {  // the even ones, and the odd ones
          sum[n][0] += (Floats)(words << 16);
          sum[n][PER_WORD<T> - 1] += (Floats)(words & 0xffff0000u);
        }
      };
      long i = first;
      for (; i + AT_ONCE <= last; i += AT_ONCE)
#pragma GCC unroll 4
        for (int n = 0; n < AT_ONCE; ++n) add(n, i + n);
      for (; i < last; ++i) add(0, i);
      for (int p = 0; p < PER_WORD<T>; ++p) {
        const Floats all = (sum[0][p] + sum[1][p]) + (sum[2][p] + sum[3][p]);
        for (int lane = 0; lane < LANES; ++lane) sums[c + lane * PER_WORD<T> + p] = all[lane];
      }
    }
    for (; c < until; ++c) {
      sums[c] = 0;
      for (long i = first; i < last; ++i) sums[c] += widened(x[i * channels + c]);
    }
  };
  parallel(pool, parts * blocks, some, positions * channels > 1 << 16);
  std::memset(out, 0, single * sizeof(float));
  for (long row = 0; row < parts * channels; row += single)
    for (long c = 0; c < single; ++c) out[c] += totals[row + c];
}

}  // namespace
