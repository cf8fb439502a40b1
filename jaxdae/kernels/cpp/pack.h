// Packed factors.

#pragma once

#include "conv_shape.h"
#include "microkernel_amx.h"

namespace {

template <class T>
long words(const Run& run, long channels) {
  const long count = (run.columns * channels + PER_WORD<T> - 1) / PER_WORD<T>;
  return tiled<T>() ? round_up(count, TILE) : count;
}
template <class T>
long words(const Phase& phase, long channels) {
  long sum = 0;
  for (const Run& run : phase.runs) sum += words<T>(run, channels);
  return sum;
}

// Rows of bfloat16 as words of elements that are `step` apart.
inline Words16 paired(const uint16_t* x, long step) {
  return __builtin_convertvector(*(const Halves16*)x, Words16) |
         __builtin_convertvector(*(const Halves16*)(x + step), Words16) << 16;
}
#if defined(__AVX512BW__)
// Words of the first halves of both, and of the second.
inline void interleave(Words (&out)[2], Words a, Words b) {
  const __m512i low = _mm512_set_epi16(  //
      47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
      39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(TILE));
  out[0] = (Words)_mm512_permutex2var_epi16((__m512i)a, low, (__m512i)b);
  out[1] = (Words)_mm512_permutex2var_epi16((__m512i)a, high, (__m512i)b);
}
#endif
inline void pair_up(uint32_t* out, const uint16_t* x, long count, long step) {
  long n = 0;
#if defined(__AVX512BW__)
  for (; n + 2 * TILE <= count; n += 2 * TILE) {
    Words words[2];
    interleave(words, *(const Words*)(x + n), *(const Words*)(x + n + step));
    *(Words*)(out + n) = words[0], *(Words*)(out + n + TILE) = words[1];
  }
#endif
  for (; n + TILE <= count; n += TILE) *(Words16*)(out + n) = paired(x + n, step);
  for (; n < count; ++n) out[n] = x[n] | uint32_t(x[n + step]) << 16;
}

// Rows of floats, rounded, as words of both; at most a panel.
inline void pair_rounded(uint32_t* out, const float* a, const float* b, long count) {
#if defined(__AVX512BF16__)
  if (count == PANEL) {
    const auto row = [](const float* x) {
      return narrowed(*(const Floats*)x, *(const Floats*)(x + LANES));
    };
    Words words[2];
    interleave(words, row(a), row(b));
    *(Words*)out = words[0], *(Words*)(out + LANES) = words[1];
    return;
  }
#endif
  bfloat16 rounded[2][PANEL];
  write<bfloat16>(rounded[0], a, nullptr, count);
  write<bfloat16>(rounded[1], b, nullptr, count);
  pair_up(out, rounded[0], count, PANEL);
}

// What is multiplied by: element (k, n) of a tap is
// `matrix[tap * tap_step + k * row + n * column]`.
template <class T>
struct Matrix {
  const float* matrix;
  long tap_step, row, column, inputs, outputs;

  // Whether it is read where it lies: of so few positions, packing it takes longer than it saves.
  bool in_place(long positions) const {
    return sizeof(T) == 4 && column == 1 && outputs % LANES == 0 && positions <= 64;
  }
  const float* rows_of(const Run& run, long pixel) const {
    return matrix + (run.tap + pixel * run.tap_step) * tap_step;
  }

  // For one phase, from column `first` on: (words, PANEL).
  void pack(uint32_t* out, const Phase& phase, long first) const {
    constexpr int PER = PER_WORD<T>;
    const long columns = std::min<long>(PANEL, outputs - first);
    std::memset(out, 0, words<T>(phase, inputs) * PANEL * 4);
    for (const Run& run : phase.runs) {
      for (long pixel = 0; pixel < run.columns; ++pixel) {
        const float* from = rows_of(run, pixel) + first * column;
        for (long c = 0; c < inputs;) {
          const long k = pixel * inputs + c, wide = PER * TILE;
          uint32_t* to = out + k / PER * PANEL;
          if (row == 1 && k % PER == 0 && c + wide <= inputs) {
            // What lies along a column: 16 columns at a time are turned.
            for (long n = 0; n < columns; n += TILE) {
              T lines[TILE][2 * TILE] = {};
              for (long i = 0; i < std::min<long>(TILE, columns - n); ++i)
                write<T>(lines[i], from + c + (n + i) * column, nullptr, wide);
              transpose(to + n, PANEL, [&](int i) { return *(const Words16*)lines[i]; });
            }
            c += wide;
          } else if (column == 1 && k % PER == 0 && c + PER <= inputs) {
            if (PER == 1)
              std::memcpy(to, from + c * row, columns * 4);
            else
              pair_rounded(to, from + c * row, from + (c + 1) * row, columns);
            c += PER;
          } else {
            for (long n = 0; n < columns; ++n)
              store((T*)to + n * PER + k % PER, from[c * row + n * column]);
            ++c;
          }
        }
      }
      out += words<T>(run, inputs) * PANEL;
    }
  }
};

}  // namespace
