// The weight gradient of a 3x3 convolution of one input channel.
//
// All 9 numbers of a patch are rows of one product that stays in registers, so each number of y is
// read once. With bfloat16 a K pair is the same position of two images.

#pragma once

#include "conv_one_channel.h"
#include "weight_grad.h"

namespace {

// Neighbouring elements of the images of a word, masked, as words: from one image, or where
// bfloat16 is multiplied from a pair of them.
template <class T>
struct ImagePair {
  static constexpr int COUNT = COMPUTES_IN_F32<T> ? 1 : 2;
  const T *x[COUNT], *mask[COUNT];

  template <bool MASKED, int N>
  void load(VecU32 (&out)[N], long from) const {
    if constexpr (COMPUTES_IN_F32<T>) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n, from += LANES) {
        const VecF32 numbers = load_f32(x[0] + from);
        out[n] = (VecU32)(MASKED ? apply_relu_mask(numbers, mask[0] + from) : numbers);
      }
    } else {
      static_assert(N == 2);
      VecU32 a = vec_u32(x[0] + from), b = vec_u32(x[1] + from);
      if (MASKED)
        a = apply_relu_mask(a, mask[0] + from), b = apply_relu_mask(b, mask[1] + from);
      vnni_interleave(out, a, b);
    }
  }
  void advance(long count) {
#pragma GCC unroll 2
    for (int i = 0; i < COUNT; ++i) x[i] += count, mask[i] += count;
  }
};

// sums (PATCH, N vectors) += patches^T y over `rows` by `columns` positions. A row of pixels is
// `line` words.
template <class T, int N, bool MASKED>
void one_channel_grad_kernel(float* sums, const uint32_t* pixels, long line, long stride,
                             const ImagePair<T>& y, long rows, long columns, long outputs) {
  const ImagePair<T> y_here = y;  // a copy stays in registers
  VecF32 sum[PATCH][N];
#pragma GCC unroll 16
  for (int m = 0; m < PATCH; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[m][n] = vec_f32(sums + m * NR + n * LANES);
  for (long row = 0, from = 0; row < rows; ++row) {
    const uint32_t* lines[SIDE];
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; ++i) lines[i] = pixels + (row * stride + i) * line;
    for (long column = 0; column < columns * stride; column += stride, from += outputs) {
      VecU32 right[N];
      y_here.template load<MASKED>(right, from);
#pragma GCC unroll 16
      for (int m = 0; m < PATCH; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n)
          sum[m][n] = multiply_add<ComputeType<T>>(
              sum[m][n], VecU32{} + lines[m / SIDE][column + m % SIDE], right[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < PATCH; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) vec_f32(sums + m * NR + n * LANES) = sum[m][n];
}

template <class T>
void weight_grad_one_channel(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& x,
                             const MaskedView<T>& y, float* out) {
  constexpr int PER = ImagePair<T>::COUNT, N = LANES / 8;  // as many sums as registers suffice for
  const Polyphase component = forward_component(s);
  const PaddedTile<T> whole(x, {component});
  // A piece is some rows, or all, of the images of a word.
  const long tall = whole.rows_that_fit(s.y_size[0]), per_image = ceil_div(s.y_size[0], tall);
  const long pieces = ceil_div(s.batch, PER) * per_image, parts = std::min<long>(SPLIT_K, pieces);
  const long line = whole.width, size = PATCH * s.y_channels;
  float* partial = scratch<float>(Use::PARTIAL, parts * size);

  parallel_for(pool, parts, [&](long part) {
    float* sums = partial + part * size;
    std::memset(sums, 0, size * sizeof(float));
    T* raw = scratch<T>(Use::RAW, PER * line);
    uint32_t* pixels = scratch<uint32_t>(Use::A, whole.rows(tall) * line);
    for (long piece = pieces * part / parts; piece < pieces * (part + 1) / parts; ++piece) {
      const long first = piece / per_image * PER, top = piece % per_image * tall;
      const long rows = std::min(tall, s.y_size[0] - top);
      ImagePair<T> y_pair;
      for (int i = 0; i < PER; ++i) {
        // In place of an image that is not there, another one, times zero.
        const long number = std::min(first + i, s.batch - 1);
        const long from = (number * s.y_size[0] + top) * s.y_size[1] * s.y_channels;
        y_pair.x[i] = y.x + from, y_pair.mask[i] = (y.mask ? y.mask : y.x) + from;
      }
      uint32_t* to = pixels;
      for (long row = 0; row < whole.rows(rows); ++row, to += line) {
        for (int i = 0; i < PER; ++i) {
          T* numbers = sizeof(T) == 4 ? (T*)to : raw + i * line;
          if (first + i < s.batch)
            whole.read_row(numbers, first + i, s.stride * top + whole.above + row);
          else
            std::memset(numbers, 0, line * sizeof(T));
        }
        if constexpr (PER == 2)
          pack_vnni(to, raw, line, line);
        else if constexpr (sizeof(T) == 2)
          for (long k = 0; k < line; ++k) to[k] = uint32_t(raw[k]) << 16;
      }
      const auto f =
          y.mask ? one_channel_grad_kernel<T, N, true> : one_channel_grad_kernel<T, N, false>;
      for (long n = 0; n < s.y_channels; n += N * LANES) {
        f(sums + n / NR * NR * PATCH + n % NR, pixels, line, s.stride, y_pair, rows, s.y_size[1],
          s.y_channels);
        y_pair.advance(N * LANES);
      }
    }
  });
  reduce_split_k(pool, s, partial, parts, size, out,
                 [&](long i, long n) { return n * PATCH + i * NR; });
}

}  // namespace
