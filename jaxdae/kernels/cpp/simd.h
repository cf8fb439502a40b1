// Vectors and the types of their elements.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__) && !defined(__clang__)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 14;  // 28 sums in 32 registers
#else
constexpr int LANES = 8, ROWS = 6;  // 12 sums in 16 registers of 8 lanes
#endif
constexpr int PANEL = 2 * LANES;  // columns of a product
constexpr int LINE = 64;          // bytes of a cache's line
constexpr int PARTS = 4;          // sums of a correlation that are added up at its end

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(2)));
typedef uint16_t Halves __attribute__((vector_size(4 * LANES), aligned(2)));
typedef uint16_t Narrow __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES), aligned(2)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t bfloat16;
typedef uint32_t Words16 __attribute__((vector_size(64), aligned(2)));
typedef uint16_t Halves16 __attribute__((vector_size(32), aligned(2)));

long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

constexpr int TILE = 16;

template <class T>
constexpr int PER_WORD = 4 / sizeof(T);

// Whether floats are multiplied: for bfloat16, where the processor has no products of it.
template <class T>
constexpr bool IN_FLOATS = sizeof(T) == 4;
#if !defined(__AVX512BF16__) && !defined(TILES)
template <>
constexpr bool IN_FLOATS<bfloat16> = true;
#endif

// What is multiplied.
template <class T>
using Multiplied = std::conditional_t<IN_FLOATS<T>, float, T>;

// Sums to what is written: to the nearest, ties to even.
void store(float* out, float x) { *out = x; }
void store(bfloat16* out, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *out = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
Narrow narrowed(Floats x) {
#if defined(__AVX512BF16__)
  const auto rounded = _mm512_cvtneps_pbh((__m512)x);
  return (Narrow)rounded;
#else
  const Words bits = (Words)x, nan = (Words)(x != x);
  const Words rounded = ((bits + 0x7fff + (bits >> 16 & 1)) & ~nan) | (nan & 0x7fc00000);
  return __builtin_convertvector(rounded >> 16, Narrow);
#endif
}
#if defined(__AVX512BF16__)
// Those of the first vector, and then those of the second.
Words narrowed(Floats low, Floats high) {
  return (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}
#endif

Floats widened(const float* x) { return *(const Floats*)x; }
Floats widened(const bfloat16* x) {
  return (Floats)(__builtin_convertvector(*(const Narrow*)x, Words) << 16);
}

void store(float* out, Floats x) { *(Floats*)out = x; }
void store(bfloat16* out, Floats x) { *(Narrow*)out = narrowed(x); }

template <class T>
Floats multiply_add(Floats sum, Words a, Words b);
template <>
inline Floats multiply_add<float>(Floats sum, Words a, Words b) {
  return sum + (Floats)a * (Floats)b;
}
template <>
inline Floats multiply_add<bfloat16>(Floats sum, Words a, Words b) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum = multiply_add<float>(sum, a << 16, b << 16);
  return multiply_add<float>(sum, a & 0xffff0000u, b & 0xffff0000u);
#endif
}

// What is loaded once, for GCC would rather read it again for each of a few rows.
inline Words in_register(Words x) {
#if defined(__AVX2__)
  asm("" : "+v"(x));
#endif
  return x;
}

#if defined(__AVX512F__) && !defined(__clang__)
// Which words of two rows that are 1, 2, 4 or 8 apart change places. (Written as constants where
// they are used, GCC puts them together word by word, each time.)
const struct Turns {
  Words low[4], high[4];
  Turns() {
    for (int turn = 0; turn < 4; ++turn)
      for (int lane = 0, s = 1 << turn; lane < TILE; ++lane) {
        low[turn][lane] = lane & s ? TILE + lane - s : lane;
        high[turn][lane] = lane & s ? TILE + lane : lane + s;
      }
  }
} turns;
#endif

// 16 rows of 16 words, row(i), become columns, in rows that are `step` apart.
template <class Row>
inline void transpose(uint32_t* out, long step, const Row& row) {
#if defined(__AVX512F__) && !defined(__clang__)
  Words v[TILE];
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) v[i] = row(i);
#pragma GCC unroll 4
  for (int turn = 0; turn < 4; ++turn) {
    const Words low = turns.low[turn], high = turns.high[turn];
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i)
      if (const int s = 1 << turn; !(i & s)) {
        const Words a = v[i], b = v[i + s];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + s] = __builtin_shuffle(a, b, high);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) *(Words*)(out + i * step) = v[i];
#else
  for (int i = 0; i < TILE; ++i) {
    const auto words = row(i);
    for (int lane = 0; lane < TILE; ++lane) out[lane * step + i] = words[lane];
  }
#endif
}

// Lane by lane, the sums of as many vectors: lane i is that of vector i.
inline Floats sums_of_lanes(Floats* v) {
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC unroll 4
  for (int turn = 3; turn >= 0; --turn)
#pragma GCC unroll 8
    for (int i = 0; i < 1 << turn; ++i) {
      const Floats a = v[i], b = v[i + (1 << turn)];
      v[i] = __builtin_shuffle(a, b, turns.low[turn]) + __builtin_shuffle(a, b, turns.high[turn]);
    }
  return v[0];
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const auto add = [](__m256 a, __m256 b) { return _mm256_hadd_ps(a, b); };
  const auto four = [&](const Floats* v) {
    return add(add((__m256)v[0], (__m256)v[1]), add((__m256)v[2], (__m256)v[3]));
  };
  const __m256 low = four(v), high = four(v + 4);
  return (Floats)(_mm256_permute2f128_ps(low, high, 0x20) +
                  _mm256_permute2f128_ps(low, high, 0x31));
#else
  Floats sums{};
  for (int i = 0; i < LANES; ++i)
    for (int lane = 0; lane < LANES; ++lane) sums[i] += v[i][lane];
  return sums;
#endif
}

float widened(float x) { return x; }
float widened(bfloat16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace
