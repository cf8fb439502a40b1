// SIMD vectors, element types and the multiply-add that all products are made of.
//
// One code serves float32 and bfloat16. Both operands of a product are read in words of 32 bits:
// one float, or two bfloat16 that are neighbours along K (a packed K pair, as VNNI instructions
// want it). Sums are float32 always.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__) && !defined(__clang__)
#define HAVE_AMX 1
#endif

// Everything is in anonymous namespaces: a library is one translation unit, and internal linkage
// lets the compiler inline and drop what it likes.
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;  // floats in a vector
#else
constexpr int LANES = 8;
#endif
constexpr int BLOCK = 16;       // rows and words of an AMX tile, and of a transposed block
constexpr int CACHE_LINE = 64;  // bytes

// Vectors of one register, at any address; `VecNarrow` has half a register, of bfloat16.
typedef float VecF32 __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t VecU32 __attribute__((vector_size(4 * LANES), aligned(2)));
typedef int32_t VecI32 __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t VecU16 __attribute__((vector_size(4 * LANES), aligned(2)));
typedef int16_t VecI16 __attribute__((vector_size(4 * LANES), aligned(2)));
typedef uint16_t VecNarrow __attribute__((vector_size(2 * LANES), aligned(2)));
// A row of a block, however long a register is.
typedef uint32_t BlockU32 __attribute__((vector_size(4 * BLOCK), aligned(2)));
typedef uint16_t BlockU16 __attribute__((vector_size(2 * BLOCK), aligned(2)));
typedef uint16_t bfloat16;

// The vector at an address. (Not one template: it would drop the types' alignment.)
#define VECTOR_AT(name, Vector)                                         \
  inline const Vector& name(const void* x) { return *(const Vector*)x; } \
  inline Vector& name(void* x) { return *(Vector*)x; }
VECTOR_AT(vec_f32, VecF32)
VECTOR_AT(vec_u32, VecU32)
VECTOR_AT(vec_u16, VecU16)
VECTOR_AT(vec_narrow, VecNarrow)
VECTOR_AT(block_u32, BlockU32)
VECTOR_AT(block_u16, BlockU16)

// A pointer into an array that may not be there.
template <class T>
inline const T* offset(const T* x, long by) {
  return x ? x + by : nullptr;
}

inline long ceil_div(long n, long unit) { return (n + unit - 1) / unit; }
inline long round_up(long n, long unit) { return ceil_div(n, unit) * unit; }

// Elements along K in a word.
template <class T>
constexpr int K_PER_WORD = 4 / sizeof(T);

// True if T is multiplied as float32. Without bfloat16 instructions bfloat16 is, too.
template <class T>
constexpr bool COMPUTES_IN_F32 = sizeof(T) == 4;
#if !defined(__AVX512BF16__) && !defined(HAVE_AMX)
template <>
constexpr bool COMPUTES_IN_F32<bfloat16> = true;
#endif
template <class T>
using ComputeType = std::conditional_t<COMPUTES_IN_F32<T>, float, T>;

// Conversions. Rounding is to nearest, ties to even; a NaN stays one.

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline VecF32 load_f32(const float* x) { return vec_f32(x); }
inline VecF32 load_f32(const bfloat16* x) {
  return (VecF32)(__builtin_convertvector(vec_narrow(x), VecU32) << 16);
}

inline VecNarrow round_to_bf16(VecF32 x) {
#if defined(__AVX512BF16__)
  const auto rounded = _mm512_cvtneps_pbh((__m512)x);
  return (VecNarrow)rounded;
#else
  const VecU32 bits = (VecU32)x, nan = (VecU32)(x != x);
  const VecU32 rounded = ((bits + 0x7fff + (bits >> 16 & 1)) & ~nan) | (nan & 0x7fc00000);
  return __builtin_convertvector(rounded >> 16, VecNarrow);
#endif
}
#if defined(__AVX512BF16__)
inline VecU32 round_to_bf16(VecF32 first, VecF32 second) {
  return (VecU32)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}
#endif

inline void store(float* out, float x) { *out = x; }
inline void store(bfloat16* out, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *out = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline void store(float* out, VecF32 x) { vec_f32(out) = x; }
inline void store(bfloat16* out, VecF32 x) { vec_narrow(out) = round_to_bf16(x); }

// sum + a b in each lane; of bfloat16, both products of a K pair.
template <class T>
VecF32 multiply_add(VecF32 sum, VecU32 a, VecU32 b);
template <>
inline VecF32 multiply_add<float>(VecF32 sum, VecU32 a, VecU32 b) {
  return sum + (VecF32)a * (VecF32)b;
}
template <>
inline VecF32 multiply_add<bfloat16>(VecF32 sum, VecU32 a, VecU32 b) {
#if defined(__AVX512BF16__)
  return (VecF32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum = multiply_add<float>(sum, a << 16, b << 16);
  return multiply_add<float>(sum, a & 0xffff0000u, b & 0xffff0000u);
#endif
}

// A word in all lanes.
inline VecU32 broadcast_word(const void* from) {
  uint32_t word;
  std::memcpy(&word, from, 4);
  return VecU32{} + word;
}

// Loads x once and keeps it. GCC would rather read it again for each of a few rows.
inline VecU32 keep_in_register(VecU32 x) {
#if defined(__AVX2__)
  asm("" : "+v"(x));
#endif
  return x;
}

#if defined(__AVX512F__) && !defined(__clang__)
// The shuffles that exchange words between two rows that are 1, 2, 4 or 8 apart. (Where these are
// constants in the code, GCC assembles them word by word at each use.)
const struct Exchanges {
  VecU32 low[4], high[4];
  Exchanges() {
    for (int level = 0; level < 4; ++level)
      for (int lane = 0, s = 1 << level; lane < BLOCK; ++lane) {
        low[level][lane] = lane & s ? BLOCK + lane - s : lane;
        high[level][lane] = lane & s ? BLOCK + lane : lane + s;
      }
  }
} exchanges;
#endif

// Transposes a block of 16 by 16 words: row(i) becomes column i of rows that are `ld` apart.
template <class Row>
inline void transpose_block(uint32_t* out, long ld, const Row& row) {
#if defined(__AVX512F__) && !defined(__clang__)
  VecU32 v[BLOCK];
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i) v[i] = row(i);
#pragma GCC unroll 4
  for (int level = 0; level < 4; ++level) {
    const VecU32 low = exchanges.low[level], high = exchanges.high[level];
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; ++i)
      if (const int s = 1 << level; !(i & s)) {
        const VecU32 a = v[i], b = v[i + s];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + s] = __builtin_shuffle(a, b, high);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i) vec_u32(out + i * ld) = v[i];
#else
  for (int i = 0; i < BLOCK; ++i) {
    const auto words = row(i);
    for (int lane = 0; lane < BLOCK; ++lane) out[lane * ld + i] = words[lane];
  }
#endif
}

// Horizontal sums of LANES vectors: lane i of the result is the sum of v[i].
inline VecF32 horizontal_sums(VecF32* v) {
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC unroll 4
  for (int level = 3; level >= 0; --level)
#pragma GCC unroll 8
    for (int i = 0; i < 1 << level; ++i) {
      const VecF32 a = v[i], b = v[i + (1 << level)];
      v[i] = __builtin_shuffle(a, b, exchanges.low[level]) +
             __builtin_shuffle(a, b, exchanges.high[level]);
    }
  return v[0];
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const auto add = [](__m256 a, __m256 b) { return _mm256_hadd_ps(a, b); };
  const auto four = [&](const VecF32* v) {
    return add(add((__m256)v[0], (__m256)v[1]), add((__m256)v[2], (__m256)v[3]));
  };
  const __m256 low = four(v), high = four(v + 4);
  return (VecF32)(_mm256_permute2f128_ps(low, high, 0x20) +
                  _mm256_permute2f128_ps(low, high, 0x31));
#else
  VecF32 sums{};
  for (int i = 0; i < LANES; ++i)
    for (int lane = 0; lane < LANES; ++lane) sums[i] += v[i][lane];
  return sums;
#endif
}

}  // namespace
