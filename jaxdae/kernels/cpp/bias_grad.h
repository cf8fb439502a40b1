// The bias gradient: y summed over all pixels, for each channel.

#pragma once

#include "parallel_for.h"
#include "scratch.h"

namespace {

template <class T>
void bias_grad(ffi::ThreadPool& pool, const T* y, long positions, long channels, float* out) {
  constexpr int N = LANES * K_PER_WORD<T>, ACCUMULATORS = 4;
  // Few channels are taken together with those of the next positions, as more of them.
  const long single = channels;
  while (channels < N && positions % 2 == 0) positions /= 2, channels *= 2;
  const long parts = std::clamp(positions / 64, 1L, 8L), blocks = ceil_div(channels, 512);
  float* partial = scratch<float>(Use::PARTIAL, parts * channels);
  const auto sum_block = [&](long item) {
    const long part = item / blocks, block = item % blocks;
    float* sums = partial + part * channels;
    const long first = positions * part / parts, last = positions * (part + 1) / parts;
    long c = block * 512;
    const long end = std::min(channels, c + 512);
    for (; c + N <= end; c += N) {
      VecF32 sum[ACCUMULATORS][K_PER_WORD<T>] = {};
      auto add = [&](int n, long i) {
        const VecU32 words = vec_u32(y + i * channels + c);
        if (sizeof(T) == 4) {
          sum[n][0] += (VecF32)words;
        } else {  // the even elements, and the odd ones
          sum[n][0] += (VecF32)(words << 16);
          sum[n][K_PER_WORD<T> - 1] += (VecF32)(words & 0xffff0000u);
        }
      };
      long i = first;
      for (; i + ACCUMULATORS <= last; i += ACCUMULATORS)
#pragma GCC unroll 4
        for (int n = 0; n < ACCUMULATORS; ++n) add(n, i + n);
      for (; i < last; ++i) add(0, i);
      for (int p = 0; p < K_PER_WORD<T>; ++p) {
        const VecF32 total = (sum[0][p] + sum[1][p]) + (sum[2][p] + sum[3][p]);
        for (int lane = 0; lane < LANES; ++lane) sums[c + lane * K_PER_WORD<T> + p] = total[lane];
      }
    }
    for (; c < end; ++c) {
      sums[c] = 0;
      for (long i = first; i < last; ++i) sums[c] += widen(y[i * channels + c]);
    }
  };
  parallel_for(pool, parts * blocks, sum_block, positions * channels > 1 << 16);
  std::memset(out, 0, single * sizeof(float));
  for (long row = 0; row < parts * channels; row += single)
    for (long c = 0; c < single; ++c) out[c] += partial[row + c];
}

}  // namespace
