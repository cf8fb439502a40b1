// Normal numbers, bit for bit those of jax.random.normal in float32.
//
// Threefry's bits of a place in the array, a uniform number made of them, and the inverse error
// function with XLA's operations in XLA's order.

#pragma once

#include "adam.h"

namespace {

inline bool any(VecI32 truths) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)truths, (__m512i)truths);
#else
  bool found = false;
  for (int lane = 0; lane < LANES; ++lane) found |= truths[lane] != 0;
  return found;
#endif
}

// a b + c, rounded once where XLA rounds once.
inline VecF32 fma(VecF32 a, VecF32 b, VecF32 c) {
#if defined(__AVX512F__)
  return (VecF32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (VecF32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
  for (int lane = 0; lane < LANES; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  return c;
#else
  return a * b + c;
#endif
}
// A polynomial, the coefficient of the highest power first.
template <int N>
inline VecF32 polynomial(VecF32 x, const float (&coefficients)[N]) {
  VecF32 sum = VecF32{} + coefficients[0];
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) sum = fma(sum, x, VecF32{} + coefficients[i]);
  return sum;
}

// Threefry-2x32 with 20 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
inline VecU32 threefry(VecU32 place, const uint32_t* key) {
  constexpr int ROTATIONS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[] = {key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda};
  VecU32 a = VecU32{} + keys[0], b = place + keys[1];
#pragma GCC unroll 5
  for (uint32_t group = 0; group < 5; ++group) {
#pragma GCC unroll 4
    for (int round = 0; round < 4; ++round) {
      const int by = ROTATIONS[group % 2][round];
      a += b;
      b = a ^ (b << by | b >> (32 - by));
    }
    a += keys[(group + 1) % 3], b += keys[(group + 2) % 3] + group + 1;
  }
  return a ^ b;
}

// log(1 + x) for -1 < x <= 0, as in Cephes: near 0 a rational function.
inline VecF32 log1p(VecF32 x) {
  const VecF32 square = x * x;
  const VecF32 numerator =
      polynomial(x, {4.5270000862445199635215e-5f, 4.9854102823193375972212e-1f,
                     6.5787325942061044846969f, 2.9911919328553073277375e1f,
                     6.0949667980987787057556e1f, 5.7112963590585538103336e1f,
                     2.0039553499201281259648e1f});
  const VecF32 denominator =
      polynomial(x, {1.0f, 1.5062909083469192043167e1f, 8.3047565967967209469434e1f,
                     2.2176239823732856465394e2f, 3.0909872225312059774938e2f,
                     2.1642788614495947685003e2f, 6.0118660497603843919306e1f});
  const VecF32 near = x + fma(square, VecF32{} - 0.5f, x * square * (numerator / denominator));

  const VecU32 bits = (VecU32)(x + 1.0f);
  const VecF32 mantissa = (VecF32)((bits & 0x807fffffu) | 0x3f000000u);  // 0.5 to 1
  VecF32 exponent = __builtin_convertvector((VecI32)(bits >> 23) - 127, VecF32) + 1.0f;
  const auto low = mantissa < 0.707106781186547524f;
  exponent -= low ? VecF32{} + 1.0f : VecF32{};
  const VecF32 t = mantissa - 1.0f + (low ? mantissa : VecF32{});
  const VecF32 second = t * t, third = second * t;
  VecF32 sum = polynomial(t, {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f});
  sum = fma(sum, third, polynomial(t, {-1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f}));
  sum = fma(sum, third, polynomial(t, {2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f}));
  sum = fma(sum, third, exponent * -2.12194440e-4f);
  sum += fma(second, VecF32{} - 0.5f, t);
  return x > -0.41421356237309503f ? near : fma(exponent, VecF32{} + 0.693359375f, sum);
}

// Giles, "Approximating the erfinv function", 2010.
inline VecF32 normal(VecU32 bits) {
  constexpr float CENTER[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f,
                              -4.39150654e-06f, 0.00021858087f,  -0.00125372503f,
                              -0.00417768164f,  0.246640727f,    1.50140941f};
  constexpr float TAIL[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f,
                            -0.00367342844f,  0.00573950773f,  -0.0076224613f,
                            0.00943887047f,   1.00167406f,     2.83297682f};
  const VecF32 from_one_to_two = (VecF32)(bits >> 9 | 0x3f800000u);
  const VecF32 uniform = (from_one_to_two - 1.0f) * 2.0f - 0.99999994f;  // rounds only here
  const VecF32 w = -log1p(uniform * -uniform);
  VecF32 sum = polynomial(w - 2.5f, CENTER);
  const auto tail = w >= 5.0f;
  if (any(tail)) sum = tail ? polynomial(square_root(w) - 3.0f, TAIL) : sum;
  return uniform * sum * 1.41421356237309505f;
}

// Rows of `count` numbers, each from its own key of two words.
inline void normal_rows(ffi::ThreadPool& pool, const uint32_t* keys, long rows, long count,
                        float* out) {
  constexpr long ITEM = 64 * LANES;
  const long parts = ceil_div(count, ITEM);
  VecU32 lanes;
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
  const auto compute = [&](long item) {
    const long row = item / parts, first = item % parts * ITEM;
    const long size = std::min(ITEM, count - first);
    // All bits first, then all numbers: each is a long chain of operations, and the next vector's
    // begins meanwhile.
    VecU32 bits[ITEM / LANES];
    for (long n = 0; n * LANES < size; ++n)
      bits[n] = threefry(lanes + uint32_t(first + n * LANES), keys + 2 * row);
    float* to = out + row * count + first;
    long n = 0;
    for (; (n + 1) * LANES <= size; ++n) save(to + n * LANES, normal(bits[n]));
    if (const long rest = size - n * LANES) {
      const VecF32 last = normal(bits[n]);
      std::memcpy(to + n * LANES, &last, rest * sizeof(float));
    }
  };
  parallel_for(pool, rows * parts, compute, rows * count > 1 << 11);
}

}  // namespace
