// Packing: B in panels of NR columns, bfloat16 in K pairs (the VNNI layout).

#pragma once

#include "conv_shape.h"
#include "microkernel_amx.h"

namespace {

// Words of K that a kernel row, or all rows of a component, take for so many channels.
template <class T>
long packed_k(const KernelRow& row, long channels) {
  const long count = ceil_div(row.taps * channels, K_PER_WORD<T>);
  return use_amx<T>() ? round_up(count, BLOCK) : count;
}
template <class T>
long packed_k(const Polyphase& component, long channels) {
  long sum = 0;
  for (const KernelRow& row : component.rows) sum += packed_k<T>(row, channels);
  return sum;
}

// K pairs of two rows of bfloat16 that are `ld` apart: element n of both in word n.

inline BlockU32 vnni_block(const uint16_t* x, long ld) {
  return __builtin_convertvector(block_u16(x), BlockU32) |
         __builtin_convertvector(block_u16(x + ld), BlockU32) << 16;
}
#if defined(__AVX512BW__)
inline void vnni_interleave(VecU32 (&out)[2], VecU32 a, VecU32 b) {
  const __m512i low = _mm512_set_epi16(  //
      47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
      39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(BLOCK));
  out[0] = (VecU32)_mm512_permutex2var_epi16((__m512i)a, low, (__m512i)b);
  out[1] = (VecU32)_mm512_permutex2var_epi16((__m512i)a, high, (__m512i)b);
}
#endif
inline void pack_vnni(uint32_t* out, const uint16_t* x, long count, long ld) {
  long n = 0;
#if defined(__AVX512BW__)
  for (; n + 2 * BLOCK <= count; n += 2 * BLOCK) {
    VecU32 words[2];
    vnni_interleave(words, vec_u32(x + n), vec_u32(x + n + ld));
    vec_u32(out + n) = words[0], vec_u32(out + n + BLOCK) = words[1];
  }
#endif
  for (; n + BLOCK <= count; n += BLOCK) block_u32(out + n) = vnni_block(x + n, ld);
  for (; n < count; ++n) out[n] = x[n] | uint32_t(x[n + ld]) << 16;
}

// The same of two rows of floats, which are rounded; at most NR of each.
inline void round_and_pack_vnni(uint32_t* out, const float* a, const float* b, long count) {
#if defined(__AVX512BF16__)
  if (count == NR) {
    const auto rounded = [](const float* x) {
      return round_to_bf16(vec_f32(x), vec_f32(x + LANES));
    };
    VecU32 words[2];
    vnni_interleave(words, rounded(a), rounded(b));
    vec_u32(out) = words[0], vec_u32(out + LANES) = words[1];
    return;
  }
#endif
  bfloat16 rounded[2][NR];
  store_row<bfloat16>(rounded[0], a, nullptr, count);
  store_row<bfloat16>(rounded[1], b, nullptr, count);
  pack_vnni(out, rounded[0], count, NR);
}

// A layer's weights as the B of a product: element (k, n) of a tap is
// weights[tap * tap_step + k * k_step + n * n_step].
template <class T>
struct WeightView {
  const float* weights;
  long tap_step, k_step, n_step, inputs, outputs;

  // True if B is read where it lies: for so few positions packing costs more than it saves.
  bool in_place(long positions) const {
    return sizeof(T) == 4 && n_step == 1 && outputs % LANES == 0 && positions <= 64;
  }
  // The rows for one pixel of a kernel row.
  const float* rows_of(const KernelRow& row, long pixel) const {
    return weights + (row.tap + pixel * row.tap_step) * tap_step;
  }

  // Packs the panel of columns from `first` on, for one component: (packed_k, NR) words.
  void pack(uint32_t* out, const Polyphase& component, long first) const {
    const long columns = std::min<long>(NR, outputs - first);
    std::memset(out, 0, packed_k<T>(component, inputs) * NR * 4);
    for (const KernelRow& row : component.rows) {
      for (long pixel = 0; pixel < row.taps; ++pixel)
        pack_tap(out, rows_of(row, pixel) + first * n_step, pixel * inputs, columns);
      out += packed_k<T>(row, inputs) * NR;
    }
  }

 private:
  // Packs the rows of one tap, which begin at row `k` of the panel.
  void pack_tap(uint32_t* out, const float* from, long k, long columns) const {
    constexpr int PER = K_PER_WORD<T>;
    const long block = PER * BLOCK;
    for (long c = 0; c < inputs;) {
      uint32_t* to = out + (k + c) / PER * NR;
      const bool whole_words = (k + c) % PER == 0;
      if (k_step == 1 && whole_words && c + block <= inputs) {
        // K is the direction that lies in memory: transpose 16 columns at a time.
        for (long n = 0; n < columns; n += BLOCK) {
          T lines[BLOCK][2 * BLOCK] = {};
          for (long i = 0; i < std::min<long>(BLOCK, columns - n); ++i)
            store_row<T>(lines[i], from + c + (n + i) * n_step, nullptr, block);
          transpose_block(to + n, NR, [&](int i) { return block_u32(lines[i]); });
        }
        c += block;
      } else if (n_step == 1 && whole_words && c + PER <= inputs) {
        if (PER == 1)
          std::memcpy(to, from + c * k_step, columns * 4);
        else
          round_and_pack_vnni(to, from + c * k_step, from + (c + 1) * k_step, columns);
        c += PER;
      } else {
        for (long n = 0; n < columns; ++n)
          store((T*)to + n * PER + (k + c) % PER, from[c * k_step + n * n_step]);
        ++c;
      }
    }
  }
};

}  // namespace
