// The ReLU mask: keeps x unless its mask is <= 0. Keeps NaN.
//
// A mask is an array of the shape and type of what it masks. An operand that is its own mask is
// ReLU(x); with the layer's input for a mask, a cotangent is the ReLU's derivative. So neither
// takes a pass through memory of its own.

#pragma once

#include "simd.h"

namespace {

inline bool relu_keeps(float mask) { return !(mask <= 0); }
inline bool relu_keeps(bfloat16 mask) { return int16_t(mask) > 0 || mask > 0xff80; }

// Words of T, zeros where the mask is <= 0.
inline VecU32 apply_relu_mask(VecU32 x, const float* mask) {
#if defined(__AVX512F__)
  const auto drop = _mm512_cmp_ps_mask(_mm512_loadu_ps(mask), __m512{}, _CMP_LE_OQ);
  return (VecU32)_mm512_mask_mov_epi32((__m512i)x, drop, __m512i{});
#else
  return x & ~(VecU32)(vec_f32(mask) <= 0);
#endif
}
inline VecU32 apply_relu_mask(VecU32 x, const bfloat16* mask) {
#if defined(__AVX512BW__)
  const __m512i m = (__m512i)vec_u32(mask);
  const auto at_most_zero = _mm512_cmple_epi16_mask(m, __m512i{});
  const auto drop = _mm512_mask_cmple_epu16_mask(at_most_zero, m, _mm512_set1_epi16(-0x80));
  return (VecU32)_mm512_mask_mov_epi16((__m512i)x, drop, __m512i{});
#else
  const VecU16 m = vec_u16(mask);
  return x & (VecU32)(((VecI16)m > 0) | (VecI16)(m > 0xff80));
#endif
}

// Floats, with a mask of T.
inline VecF32 apply_relu_mask(VecF32 x, const float* mask) {
  return (VecF32)apply_relu_mask((VecU32)x, mask);
}
inline VecF32 apply_relu_mask(VecF32 x, const bfloat16* mask) {
  return (VecF32)((VecU32)x & ~(VecU32)(load_f32(mask) <= 0));
}

// Copies x through its mask, or as it is if there is none.
template <class T>
inline void copy_masked(T* out, const T* x, const T* mask, long count) {
  long c = 0;
  constexpr long N = 4 * LANES / sizeof(T);
  if (!mask) {
    std::memcpy(out, x, count * sizeof(T));
  } else {
    for (; c + N <= count; c += N)
      vec_u32(out + c) = apply_relu_mask(vec_u32(x + c), mask + c);
    for (; c < count; ++c) out[c] = relu_keeps(mask[c]) ? x[c] : T(0);
  }
}

// Epilogues: round sums to T, apply the mask, store.

template <bool MASKED, int N, class T>
inline void store_sums(T* out, const VecF32 (&sum)[N], const T* mask) {
#if defined(__AVX512BF16__)
  if constexpr (N == 2 && sizeof(T) == 2) {
    const VecU32 rounded = round_to_bf16(sum[0], sum[1]);
    vec_u32(out) = MASKED ? apply_relu_mask(rounded, mask) : rounded;
    return;
  }
#endif
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n)
    store(out + n * LANES, MASKED ? apply_relu_mask(sum[n], mask + n * LANES) : sum[n]);
}

// The same for a row of any length.
template <class T>
inline void store_row(T* out, const float* sums, const T* mask, long count) {
  long n = 0;
  for (; n + LANES <= count; n += LANES) {
    const VecF32 sum = vec_f32(sums + n);
    store(out + n, mask ? apply_relu_mask(sum, mask + n) : sum);
  }
  for (; n < count; ++n) store(out + n, mask && !relu_keeps(mask[n]) ? 0.0f : sums[n]);
}

}  // namespace
