// The 3x3 convolution of one input channel: B has so few rows that it stays in registers.

#pragma once

#include "pack.h"
#include "padded_tile.h"

namespace {

constexpr int SIDE = 3, PATCH = SIDE * SIDE;

inline bool one_channel_applies(const ConvShape& s) {
  return s.kernel[0] == SIDE && s.kernel[1] == SIDE && s.x_channels == 1 && s.y_channels % NR == 0;
}

template <class T>
constexpr int SIDE_WORDS = (SIDE + K_PER_WORD<T> - 1) / K_PER_WORD<T>;

// M neighbouring positions, N vectors of outputs; `rows` are the rows of pixels from the first on.
template <class T, int M, int N>
void one_channel_kernel(T* out, const float* start, const T* const (&rows)[SIDE], long step,
                        const uint32_t* packed, long outputs, const T* mask) {
  constexpr int WORDS = SIDE_WORDS<T>;
  VecU32 right[SIDE * WORDS][N];
  VecF32 sum[M][N];
#pragma GCC unroll 16
  for (int k = 0; k < SIDE * WORDS; ++k)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n)
      right[k][n] = keep_in_register(vec_u32(packed + k * NR + n * LANES));
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[m][n] = vec_f32(start + n * LANES);
#pragma GCC unroll 16
  for (int k = 0; k < SIDE * WORDS; ++k)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const VecU32 left =
          broadcast_word(rows[k / WORDS] + m * step + k % WORDS * K_PER_WORD<T>);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sum[m][n] = multiply_add<T>(sum[m][n], left, right[k][n]);
    }
  if (mask)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) store_sums<true>(out + m * outputs, sum[m], mask + m * outputs);
  else
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) store_sums<false>(out + m * outputs, sum[m], mask);
}
template <class T, int N, int... M>
auto one_channel_kernel_of(long count, std::integer_sequence<int, M...>) {
  static constexpr decltype(&one_channel_kernel<T, 1, N>) all[] = {
      one_channel_kernel<T, M + 1, N>...};
  return all[count - 1];
}

template <class T>
void conv_one_channel(ffi::ThreadPool& pool, const std::vector<Polyphase>& components,
                      const MaskedView<T>& source, const WeightView<T>& weights, const float* bias,
                      const T* mask, T* out, long batch, long height, long width) {
  constexpr int K = SIDE * SIDE_WORDS<T>, N = LANES / 8;
  constexpr int MOST = (2 * LANES - 4 - K * N) / N;  // as many positions as registers are left
  const long outputs = weights.outputs;
  float* start = scratch<float>(Use::WEIGHTS, outputs * (1 + K));
  uint32_t* packed = (uint32_t*)start + outputs;
  for (long n = 0; n < outputs; ++n) start[n] = bias ? bias[n] : 0;
  for (long n = 0; n < outputs; n += NR) weights.pack(packed + n * K, components[0], n);
  const auto compute = [&](const PaddedTile<T>& tile, long image, long top, long bottom) {
    const auto block = [&](long i, long j, long count) {
      const T* rows[SIDE];
      for (int row = 0; row < SIDE; ++row) rows[row] = tile.at(components[0].rows[row], i, j);
      const auto f = one_channel_kernel_of<T, N>(count, std::make_integer_sequence<int, MOST>());
      const long to = ((image * height + i) * width + j) * outputs;
      for (long n = 0; n < outputs; n += N * LANES)
        f(out + to + n, start + n, rows, tile.step, packed + n / NR * NR * K + n % NR, outputs,
          offset(mask, to + n));
    };
    for (long i = top; i < bottom; ++i)
      for_blocks(width, MOST, [&](long j, long count) { block(i, j, count); });
  };
  const bool worth = batch * height * width * outputs > 1 << 17;
  for_padded_tiles(pool, components, source, batch, worth, compute);
}

}  // namespace
