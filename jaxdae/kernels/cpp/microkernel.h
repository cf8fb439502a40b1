// The micro-kernel: an MR x NR block of C stays in registers while K runs (batch-reduce GEMM).
//
// C = start + sum over segments of A B. A is read word by word where it lies, B a row of NR words
// at a time. Two policies say what differs between its users: `Start` gives the first value of the
// sums, `Rows` says where the rows of C are and stores them (the epilogue).

#pragma once

#include <utility>

#include "relu_mask.h"

namespace {

// As in BLIS: rows and columns of the block. NR is two vectors, so MR x 2 sums fill all registers
// but the few that hold a row of B and an element of A: 28 of 32, or 12 of 16.
constexpr int NR = 2 * LANES;
#if defined(__AVX512F__)
constexpr int MR = 14;
#else
constexpr int MR = 6;
#endif

// A stretch of K: `count` words of each row of A, and as many rows of B.
template <class T>
struct KSegment {
  const T* a;
  const uint32_t* b;
  long count;
};

// a[m, k] is at segment.a + a + m * lda + k * a_step, in elements; b[k, n] at
// segment.b + b + k * ldb + n, in words.
struct Strides {
  long lda, a_step, ldb;
  long a = 0, b = 0;
};

// sum (M, N vectors) += A B over all segments.
template <class T, int M, int N>
inline void accumulate(VecF32 (&sum)[M][N], const KSegment<T>* segments, long length,
                       const Strides& strides) {
  const long lda = strides.lda, a_step = strides.a_step, ldb = strides.ldb;
  for (const KSegment<T>* segment = segments; segment < segments + length; ++segment) {
    const T* a = segment->a + strides.a;
    const uint32_t* b = segment->b + strides.b;
    for (long k = 0; k < segment->count; ++k, a += a_step, b += ldb) {
      VecU32 right[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) right[n] = keep_in_register(vec_u32(b + n * LANES));
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const VecU32 left = broadcast_word(a + m * lda);
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sum[m][n] = multiply_add<T>(sum[m][n], left, right[n]);
      }
    }
  }
}

// Sums begin with rows that are `ld` apart: C itself, or with ld = 0 a bias.
struct StartRows {
  const float* first;
  long ld;
  template <int M, int N>
  void load(VecF32 (&sum)[M][N]) const {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) sum[m][n] = vec_f32(first + m * ld + n * LANES);
  }
};

// Rows of C that are `ldc` apart, and a mask that lies as they do, or nullptr.
template <class Out>
struct StridedRows {
  Out* c;
  long ldc;
  const Out* mask = nullptr;
  template <int M, int N>
  void prefetch() const {}
  long at(int m) const { return m * ldc; }
};

template <class T, int M, int N, class Rows, class Start>
void microkernel(const Rows& given_rows, const Start& given_start, const KSegment<T>* segments,
                 long length, const Strides& strides) {
  // Copies, which no store can change: so they stay in registers.
  const Rows rows = given_rows;
  const Start start = given_start;
  VecF32 sum[M][N];
  rows.template prefetch<M, N>();
  start.load(sum);
  accumulate(sum, segments, length, strides);
  if (rows.mask)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
      store_sums<true>(rows.c + rows.at(m), sum[m], rows.mask + rows.at(m));
  else
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) store_sums<false>(rows.c + rows.at(m), sum[m], rows.mask);
}

// Runs the micro-kernel of `m` rows, at most MR, and of one vector of columns or two.
template <class T, class Rows, class Start, int... M>
void run_microkernel(std::integer_sequence<int, M...>, long m, long columns, const Rows& rows,
                     const Start& start, const KSegment<T>* segments, long length,
                     const Strides& strides) {
  static constexpr decltype(&microkernel<T, 1, 1, Rows, Start>)
      narrow[] = {microkernel<T, M + 1, 1, Rows, Start>...},
      wide[] = {microkernel<T, M + 1, 2, Rows, Start>...};
  (columns > LANES ? wide : narrow)[m - 1](rows, start, segments, length, strides);
}
template <class T, class Rows, class Start>
void run_microkernel(long m, long columns, const Rows& rows, const Start& start,
                     const KSegment<T>* segments, long length, const Strides& strides) {
  run_microkernel<T>(std::make_integer_sequence<int, MR>(), m, columns, rows, start, segments,
                     length, strides);
}

}  // namespace
