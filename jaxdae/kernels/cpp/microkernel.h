// Products in registers.

#pragma once

#include <utility>

#include "relu_mask.h"

namespace {

// A term of a sum of products: `count` words of each row of a, and as many rows of b.
template <class T>
struct Term {
  const T* a;
  const uint32_t* b;
  long count;
};

// Where the words of a term are: a[m, k] at a + m * row + k * step, b[k, n] at b + k * b_step + n;
// the rows of the sums; and where in each term a and b begin.
struct Strides {
  long row, step, b_step, sums, a = 0, b = 0;
};
// Of tiles, two blocks of rows are taken together: where the second is of each a, if there is one.
struct Second {
  long a, sums;
};

// sum (M, N * LANES) += a (M, count) b (count, N * LANES) of each term.
template <class T, int M, int N>
inline void add_products(Floats (&sum)[M][N], const Term<T>* terms, long length,
                         const Strides& strides) {
  const long row = strides.row, step = strides.step, b_step = strides.b_step;
  for (const Term<T>* term = terms; term < terms + length; ++term) {
    const T* a = term->a + strides.a;
    const uint32_t* b = term->b + strides.b;
    for (long k = 0; k < term->count; ++k, a += step, b += b_step) {
      Words right[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) right[n] = in_register(*(const Words*)(b + n * LANES));
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        uint32_t word;
        std::memcpy(&word, a + m * row, 4);
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n)
          sum[m][n] = multiply_add<T>(sum[m][n], Words{} + word, right[n]);
      }
    }
  }
}

// sums = start + products. `start` is the sums themselves, or a row that all begin with. A gate
// lies as the sums do, if there is one.
template <class T, class Out, int M, int N>
void multiply(Out* sums, const float* start, const Term<T>* terms, long length,
              const Strides& strides, const Out* gate) {
  const long begin = (const void*)start == sums ? strides.sums : 0;
  Floats sum[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[m][n] = *(const Floats*)(start + m * begin + n * LANES);
  add_products(sum, terms, length, strides);
  if (gate)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
      finish<true>(sums + m * strides.sums, sum[m], gate + m * strides.sums);
  else
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish<false>(sums + m * strides.sums, sum[m], gate);
}

template <class T, class Out>
using Multiply = void (*)(Out*, const float*, const Term<T>*, long, const Strides&, const Out*);

template <class T, class Out, int... M>
Multiply<T, Out> choose(long rows, long columns, std::integer_sequence<int, M...>) {
  static constexpr Multiply<T, Out> narrow[] = {multiply<T, Out, M + 1, 1>...},
                                    wide[] = {multiply<T, Out, M + 1, 2>...};
  return (columns > LANES ? wide : narrow)[rows - 1];
}
// For so many rows, at most ROWS, and so many columns of a panel.
template <class T, class Out = float>
Multiply<T, Out> choose(long rows, long columns) {
  return choose<T, Out>(rows, columns, std::make_integer_sequence<int, ROWS>());
}

}  // namespace
