// Convolutions of one channel.

#pragma once

#include "pack.h"
#include "padded_tile.h"

namespace {

// The same for patches of so few numbers that all they are multiplied by stays in registers: 3 by
// 3, of one channel.
constexpr int SIDE = 3, PATCH = SIDE * SIDE;
bool single_channel(const Geometry& g) {
  return g.kernel[0] == SIDE && g.kernel[1] == SIDE && g.channels == 1 && g.outputs % PANEL == 0;
}
template <class T>
constexpr int SIDE_WORDS = (SIDE + PER_WORD<T> - 1) / PER_WORD<T>;

// M positions beside each other, from where on their rows of pixels are read.
template <class T, int M, int N>
void multiply_patches(T* out, const float* start, const T* const (&rows)[SIDE], long step,
                      const uint32_t* packed, long outputs, const T* gate) {
  constexpr int WORDS = SIDE_WORDS<T>;
  Words right[SIDE * WORDS][N];
  Floats sum[M][N];
#pragma GCC unroll 16
  for (int k = 0; k < SIDE * WORDS; ++k)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n)
      right[k][n] = in_register(*(const Words*)(packed + k * PANEL + n * LANES));
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[m][n] = *(const Floats*)(start + n * LANES);
#pragma GCC unroll 16
  for (int k = 0; k < SIDE * WORDS; ++k)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      uint32_t word;
      std::memcpy(&word, rows[k / WORDS] + m * step + k % WORDS * PER_WORD<T>, 4);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n)
        sum[m][n] = multiply_add<T>(sum[m][n], Words{} + word, right[k][n]);
    }
  if (gate)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish<true>(out + m * outputs, sum[m], gate + m * outputs);
  else
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish<false>(out + m * outputs, sum[m], gate);
}
template <class T, int N, int... M>
auto choose_patches(long count, std::integer_sequence<int, M...>) {
  static constexpr decltype(&multiply_patches<T, 1, N>) all[] = {multiply_patches<T, M + 1, N>...};
  return all[count - 1];
}
template <class T>
void apply_patches(ffi::ThreadPool& pool, const std::vector<Phase>& phases, const Source<T>& source,
                   const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
                   long height, long width) {
  constexpr int DEPTH = SIDE * SIDE_WORDS<T>, N = LANES / 8;
  constexpr int MOST = (2 * LANES - 4 - DEPTH * N) / N;  // positions: registers suffice
  const long outputs = matrix.outputs;
  float* start = memory<float>(MATRIX, outputs * (1 + DEPTH));
  uint32_t* packed = (uint32_t*)start + outputs;
  for (long n = 0; n < outputs; ++n) start[n] = bias ? bias[n] : 0;
  for (long n = 0; n < outputs; n += PANEL) matrix.pack(packed + n * DEPTH, phases[0], n);
  const auto some = [&](const Window<T>& window, long image, long top, long bottom) {
    const auto part = [&](long i, long j, long count) {
      const T* rows[SIDE];
      for (int row = 0; row < SIDE; ++row) rows[row] = window.at(phases[0].runs[row], i, j);
      const auto f = choose_patches<T, N>(count, std::make_integer_sequence<int, MOST>());
      const long to = ((image * height + i) * width + j) * outputs;
      for (long n = 0; n < outputs; n += N * LANES)
        f(out + to + n, start + n, rows, window.step,
          packed + n / PANEL * PANEL * DEPTH + n % PANEL, outputs, gate ? gate + to + n : nullptr);
    };
    for (long i = top; i < bottom; ++i)
      by_parts(width, [&](long j, long count) { part(i, j, count); }, MOST);
  };
  by_window(pool, phases, source, batch, batch * height * width * outputs > 1 << 17, some);
}

}  // namespace
