// The ReLU mask.

#pragma once

#include "simd.h"

namespace {

// What a relu lets through, and gates: what is not at most 0, so that a NaN passes.
bool open(float gate) { return !(gate <= 0); }
bool open(bfloat16 gate) { return int16_t(gate) > 0 || gate > 0xff80; }
// Words of what is let through, and zeros.
inline Words passed(Words x, const float* gate) {
#if defined(__AVX512F__)
  const auto shut = _mm512_cmp_ps_mask(_mm512_loadu_ps(gate), __m512{}, _CMP_LE_OQ);
  return (Words)_mm512_mask_mov_epi32((__m512i)x, shut, __m512i{});
#else
  return x & ~(Words)(*(const Floats*)gate <= 0);
#endif
}
inline Words passed(Words x, Words gate) {  // of bfloat16
#if defined(__AVX512BW__)
  const __m512i g = (__m512i)gate;
  const auto below = _mm512_cmple_epi16_mask(g, __m512i{});
  const auto shut = _mm512_mask_cmple_epu16_mask(below, g, _mm512_set1_epi16(-0x80));
  return (Words)_mm512_mask_mov_epi16((__m512i)x, shut, __m512i{});
#else
  const Halves g = (Halves)gate;
  return x & (Words)(((Shorts)g > 0) | (Shorts)(g > 0xff80));
#endif
}
inline Words passed(Words x, const bfloat16* gate) { return passed(x, *(const Words*)gate); }

// Sums, zeros where a gate is closed.
Floats gated(Floats x, const float* gate) { return (Floats)passed((Words)x, gate); }
Floats gated(Floats x, const bfloat16* gate) {
  return (Floats)((Words)x & ~(Words)(widened(gate) <= 0));
}

// Sums written, zeros where a gate is closed.
template <bool GATED, int N, class T>
inline void finish(T* out, const Floats (&sum)[N], const T* gate) {
#if defined(__AVX512BF16__)
  if constexpr (N == 2 && sizeof(T) == 2) {
    const Words rounded = narrowed(sum[0], sum[1]);
    *(Words*)out = GATED ? passed(rounded, gate) : rounded;
    return;
  }
#endif
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n)
    store(out + n * LANES, GATED ? gated(sum[n], gate + n * LANES) : sum[n]);
}

// Copies elements where their gate is open, or all if there is none.
template <class T>
inline void copy(T* out, const T* x, const T* gate, long count) {
  long c = 0;
  constexpr long N = 4 * LANES / sizeof(T);
  if (!gate) {
    std::memcpy(out, x, count * sizeof(T));
  } else {
    for (; c + N <= count; c += N)
      *(Words*)(out + c) = passed(*(const Words*)(x + c), gate + c);
    for (; c < count; ++c) out[c] = open(gate[c]) ? x[c] : T(0);
  }
}

// Sums written, zeros where a gate is closed.
template <class T>
inline void write(T* out, const float* sums, const T* gate, long count) {
  long n = 0;
  for (; n + LANES <= count; n += LANES)
    store(out + n, gate ? gated(*(const Floats*)(sums + n), gate + n)
                        : *(const Floats*)(sums + n));
  for (; n < count; ++n) store(out + n, gate && !open(gate[n]) ? 0.0f : sums[n]);
}

}  // namespace
