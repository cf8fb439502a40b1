// Adam.

#pragma once

#include "parallel_for.h"
#include "scratch.h"

namespace {

// Adam's step: averages of the gradient and of its square, and the update that they make, of all
// parameters at once. `scales` says, in this order: what the averages keep of themselves; by what
// the first average, the gradient and the second average are multiplied; Adam's epsilon; the rate
// of the update; and what the averages of centred pairs keep of themselves. The update is written,
// or the parameters with it, if they are given.
struct Leaf {
  const float *gradient, *mean, *square, *params;
  float *made, *new_mean, *new_square;
  long count;
};
// A kernel, a row for each input, and its bias: jaxdae.optimizers.centered.
struct Pair {
  long kernel, bias;
  const float *cross, *square;
  float *new_cross, *new_square;
};
float root(float x) { return __builtin_sqrtf(x); }
Floats root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)x);
#else
  for (int lane = 0; lane < LANES; ++lane) x[lane] = root(x[lane]);
  return x;
#endif
}
// A float, or a vector of them that may lie anywhere.
template <class F>
F load(const float* x) {
  F value;
  std::memcpy(&value, x, sizeof(F));
  return value;
}
template <class F>
void put(float* out, F x) {
  std::memcpy(out, &x, sizeof(F));
}
// Numbers of a leaf, from n on. Without `shift` their gradient counts as it is; with it, without
// `center` times that, and center times the update is added to `moved`.
template <class F>
inline void adam_at(const float* scales, const Leaf& leaf, long n, float center,
                    const float* shift, float* moved) {
  F gradient = load<F>(leaf.gradient + n);
  if (shift) gradient -= center * load<F>(shift);
  const F mean = scales[0] * load<F>(leaf.mean + n) + (1 - scales[0]) * gradient;
  const F square =
      scales[1] * load<F>(leaf.square + n) + (1 - scales[1]) * (gradient * gradient);
  const F update = scales[6] * (scales[2] * mean + scales[3] * gradient) /
                   (root(scales[4] * square) + scales[5]);
  put<F>(leaf.new_mean + n, mean), put<F>(leaf.new_square + n, square);
  put<F>(leaf.made + n, leaf.params ? load<F>(leaf.params + n) + update : update);
  if (shift) put<F>(moved, load<F>(moved) + center * update);
}
void adam_row(const float* scales, const Leaf& leaf, long first, long count, float center,
              const float* shift, float* moved) {
  long n = 0;
  for (; n + LANES <= count; n += LANES)
    adam_at<Floats>(scales, leaf, first + n, center, shift ? shift + n : nullptr, moved + n);
  for (; n < count; ++n)
    adam_at<float>(scales, leaf, first + n, center, shift ? shift + n : nullptr, moved + n);
}
bool any(Integers truths) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)truths, (__m512i)truths);
#else
  bool found = false;
  for (int lane = 0; lane < LANES; ++lane) found |= truths[lane] != 0;
  return found;
#endif
}
float sum_of_lanes(Floats x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
  return sum;
#endif
}
float dot(const float* a, const float* b, long count) {
  Floats sums{};
  long n = 0;
  for (; n + LANES <= count; n += LANES) sums += load<Floats>(a + n) * load<Floats>(b + n);
  float sum = sum_of_lanes(sums);
  for (; n < count; ++n) sum += a[n] * b[n];
  return sum;
}
void adam(ffi::ThreadPool& pool, const float* scales, const std::vector<Leaf>& leaves,
          const std::vector<Pair>& pairs) {
  constexpr long TAKEN = 4096;  // parameters at a time
  const float keep = scales[7];
  struct Item {
    const Leaf* leaf;
    const Pair* pair;
    long first, count, moved;  // of rows, if they are a pair's; and where they are summed up
  };
  std::vector<Item> items;
  std::vector<const Pair*> pair_of(leaves.size());
  long length = 0;
  for (const Pair& pair : pairs) pair_of[pair.kernel] = &pair;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const long row = pair_of[i] ? leaves[pair_of[i]->bias].count : 1;
    const long rows = row ? leaves[i].count / row : 0;
    for (long first = 0, most = std::max(1L, TAKEN / std::max(1L, row)); first < rows;
         first += most) {
      items.push_back({&leaves[i], pair_of[i], first, std::min(most, rows - first), length});
      if (pair_of[i]) length += row;
    }
  }
  float* totals = memory<float>(TOTALS, length);
  std::memset(totals, 0, length * sizeof(float));
  for (const Pair& pair : pairs) {
    const Leaf& bias = leaves[pair.bias];
    *pair.new_square = keep * *pair.square +
                       (1 - keep) * dot(bias.gradient, bias.gradient, bias.count);
  }
  const auto some = [&](long number) {
    const auto [leaf, pair, first, count, moved] = items[number];
    if (!pair) {
      adam_row(scales, *leaf, first, count, 0, nullptr, nullptr);
      return;
    }
    const float* shift = leaves[pair->bias].gradient;
    const float square = *pair->new_square > 0 ? *pair->new_square : 1;  // else no gradient yet
    const long row = leaves[pair->bias].count;
    for (long k = first; k < first + count; ++k) {
      const float cross = keep * pair->cross[k] +
                          (1 - keep) * dot(leaf->gradient + k * row, shift, row);
      pair->new_cross[k] = cross;
      adam_row(scales, *leaf, k * row, row, cross / square, shift, totals + moved);
    }
  };
  parallel(pool, items.size(), some, items.size() > 1);
  for (const Item& item : items)
    if (item.pair) {
      const Leaf& bias = leaves[item.pair->bias];
      const float* moved = totals + item.moved;
      long n = 0;
      for (; n + LANES <= bias.count; n += LANES)
        put(bias.made + n, load<Floats>(bias.made + n) - load<Floats>(moved + n));
      for (; n < bias.count; ++n) bias.made[n] -= moved[n];
    }
}

}  // namespace
