// A step of Adam for all parameters at once, optionally in centred coordinates.
//
//     mean = keep * mean + (1 - keep) * gradient
//     square = keep_square * square + (1 - keep_square) * gradient^2
//     update = rate * (of_mean * mean + of_gradient * gradient)
//              / (sqrt(of_square * square) + epsilon)
//
// A layer's kernel and its bias may be a centred pair (jaxdae.optimizers.centered): each row of the
// kernel's gradient counts without its projection on the bias's gradient.

#pragma once

#include <vector>

#include "parallel_for.h"
#include "scratch.h"

namespace {

struct AdamScales {  // as they come, in this order
  float keep, keep_square, of_mean, of_gradient, of_square, epsilon, rate, keep_cross;
};
// A parameter array. `params` is nullptr where the update itself is wanted in `out`, else out is
// params + update.
struct Leaf {
  const float *gradient, *mean, *square, *params;
  float *out, *new_mean, *new_square;
  long count;
};
// A centred pair: the indices of its leaves, and the running averages of what centring needs, of
// kernel gradient times bias gradient (for each row) and of the bias gradient's square.
struct CentredPair {
  long kernel, bias;
  const float *cross, *square;
  float *new_cross, *new_square;
};

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline VecF32 square_root(VecF32 x) {
#if defined(__AVX512F__)
  return (VecF32)_mm512_sqrt_ps((__m512)x);
#else
  for (int lane = 0; lane < LANES; ++lane) x[lane] = square_root(x[lane]);
  return x;
#endif
}

// F is a float, or a vector of them at any address.
template <class F>
F load(const float* x) {
  F value;
  std::memcpy(&value, x, sizeof(F));
  return value;
}
template <class F>
void save(float* out, F x) {
  std::memcpy(out, &x, sizeof(F));
}

float sum_of_lanes(VecF32 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
  return sum;
#endif
}
float dot(const float* a, const float* b, long count) {
  VecF32 sums{};
  long n = 0;
  for (; n + LANES <= count; n += LANES) sums += load<VecF32>(a + n) * load<VecF32>(b + n);
  float sum = sum_of_lanes(sums);
  for (; n < count; ++n) sum += a[n] * b[n];
  return sum;
}

// Element(s) n of a leaf. With `shift`, the gradient counts without `center` times it, and center
// times the update is added to `moved`, which the bias loses in the end.
template <class F>
void adam_at(const AdamScales& s, const Leaf& leaf, long n, float center,
                    const float* shift, float* moved) {
  F gradient = load<F>(leaf.gradient + n);
  if (shift) gradient -= center * load<F>(shift);
  const F mean = s.keep * load<F>(leaf.mean + n) + (1 - s.keep) * gradient;
  const F square =
      s.keep_square * load<F>(leaf.square + n) + (1 - s.keep_square) * (gradient * gradient);
  const F update = s.rate * (s.of_mean * mean + s.of_gradient * gradient) /
                   (square_root(s.of_square * square) + s.epsilon);
  save<F>(leaf.new_mean + n, mean), save<F>(leaf.new_square + n, square);
  save<F>(leaf.out + n, leaf.params ? load<F>(leaf.params + n) + update : update);
  if (shift) save<F>(moved, load<F>(moved) + center * update);
}
void adam_row(const AdamScales& s, const Leaf& leaf, long first, long count, float center,
                     const float* shift, float* moved) {
  long n = 0;
  for (; n + LANES <= count; n += LANES)
    adam_at<VecF32>(s, leaf, first + n, center, offset(shift, n), moved + n);
  for (; n < count; ++n)
    adam_at<float>(s, leaf, first + n, center, offset(shift, n), moved + n);
}

void adam(ffi::ThreadPool& pool, const AdamScales& scales, const std::vector<Leaf>& leaves,
                 const std::vector<CentredPair>& pairs) {
  constexpr long ITEM = 4096;  // parameters in a work item
  struct Item {
    const Leaf* leaf;
    const CentredPair* pair;
    long first, count, moved;  // rows of the leaf, and where their part of `moved` is
  };
  std::vector<Item> items;
  std::vector<const CentredPair*> pair_of(leaves.size());
  long moved_size = 0;
  for (const CentredPair& pair : pairs) pair_of[pair.kernel] = &pair;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const long row = pair_of[i] ? leaves[pair_of[i]->bias].count : 1;
    const long rows = row ? leaves[i].count / row : 0;
    for (long first = 0, most = std::max(1L, ITEM / std::max(1L, row)); first < rows;
         first += most) {
      items.push_back({&leaves[i], pair_of[i], first, std::min(most, rows - first), moved_size});
      if (pair_of[i]) moved_size += row;
    }
  }
  float* all_moved = scratch<float>(Use::PARTIAL, moved_size);
  std::memset(all_moved, 0, moved_size * sizeof(float));
  const float keep = scales.keep_cross;
  for (const CentredPair& pair : pairs) {
    const Leaf& bias = leaves[pair.bias];
    *pair.new_square = keep * *pair.square +
                       (1 - keep) * dot(bias.gradient, bias.gradient, bias.count);
  }

  const auto step = [&](long number) {
    const auto [leaf, pair, first, count, moved] = items[number];
    if (!pair) {
      adam_row(scales, *leaf, first, count, 0, nullptr, nullptr);
      return;
    }
    const float* shift = leaves[pair->bias].gradient;
    const float square = *pair->new_square > 0 ? *pair->new_square : 1;  // 0: no gradient yet
    const long row = leaves[pair->bias].count;
    for (long k = first; k < first + count; ++k) {
      const float cross =
          keep * pair->cross[k] + (1 - keep) * dot(leaf->gradient + k * row, shift, row);
      pair->new_cross[k] = cross;
      adam_row(scales, *leaf, k * row, row, cross / square, shift, all_moved + moved);
    }
  };
  parallel_for(pool, items.size(), step, items.size() > 1);

  for (const Item& item : items)
    if (item.pair) {
      const Leaf& bias = leaves[item.pair->bias];
      const float* moved = all_moved + item.moved;
      long n = 0;
      for (; n + LANES <= bias.count; n += LANES)
        save(bias.out + n, load<VecF32>(bias.out + n) - load<VecF32>(moved + n));
      for (; n < bias.count; ++n) bias.out[n] -= moved[n];
    }
}

}  // namespace
