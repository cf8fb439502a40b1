// Dense layers: C = A B + bias, (m, n) from (m, k) and (k, n).
//
// Blocks of C are shared by threads, and where K is long, parts of it too (split-K). Within a block
// K goes in steps of KC; A is read in place if its layout allows, B is packed in panels.

#pragma once

#include <optional>

#include "pack.h"
#include "parallel_for.h"
#include "scratch.h"

namespace {

constexpr long KC = 512;  // as in BLIS: so many rows of a panel of B stay in L1
constexpr long MC = 128;  // rows of A for which B is packed once
constexpr long NC = 7 * NR;

// Element (i, j) is x[i * row + j * column], or zero where the mask is <= 0. One step is 1.
template <class T>
struct MatrixView {
  const T *x, *mask;
  long row, column;
};

// `count` elements that lie beside each other, from (i, j) on, masked, as T.
template <class T, class S>
inline void load_row(T* to, const MatrixView<S>& view, long i, long j, long count) {
  const long from = i * view.row + j * view.column;
  if constexpr (sizeof(S) == sizeof(T))
    copy_masked(to, view.x + from, offset(view.mask, from), count);
  else
    store_row<T>(to, view.x + from, nullptr, count);
}

// Packs rows k to k + depth of a view whose rows lie in memory, `count` columns from n on: a line
// of words, `ld` apart, for each K word. Rows from k + inside on count as zero.
template <class T, class S>
void pack_k_words(uint32_t* to, long ld, const MatrixView<S>& view, long k, long depth,
                  long inside, long n, long count) {
  for (long i = 0; i < depth; i += K_PER_WORD<T>, to += ld) {
    if constexpr (sizeof(T) == 4) {
      load_row((T*)to, view, k + i, n, count);
    } else {
      const S* from = view.x + (k + i) * view.row + n;
      if (!view.mask && i + 1 < inside && (sizeof(S) == 2 || count % BLOCK == 0)) {
        if constexpr (sizeof(S) == 2)
          pack_vnni(to, from, count, view.row);
        else
          round_and_pack_vnni(to, from, from + view.row, count);
        continue;
      }
      bfloat16 both[2][MC] = {};
      for (int row = 0; row < 2 && i + row < inside; ++row)
        load_row(both[row], view, k + i + row, n, count);
      pack_vnni(to, both[0], count, MC);
    }
  }
}

// The same of a view whose columns lie in memory.
template <class T, class S>
void pack_k_words_transposed(uint32_t* to, long ld, const MatrixView<S>& view, long k, long depth,
                             long inside, long n, long count) {
  constexpr long DEEP = K_PER_WORD<T> * BLOCK;
  for (long c = 0; c < count; c += BLOCK)
    for (long i = 0; i < depth; i += DEEP) {
      T lines[BLOCK][DEEP];
      if (inside - i < DEEP || count - c < BLOCK) std::memset(lines, 0, sizeof(lines));
      for (long j = 0; j < std::min<long>(BLOCK, count - c); ++j)
        load_row(lines[j], view, k + i, n + c + j, std::min(DEEP, inside - i));
      transpose_block(to + i / K_PER_WORD<T> * ld + c, ld,
                      [&](int j) { return block_u32(lines[j]); });
    }
}

// A block of A as the micro-kernel reads it.
template <class T>
struct PackedA {
  const T* a;
  long lda, a_step;
};
template <class T>
PackedA<T> pack_a(const MatrixView<T>& a, long top, long rows, long k, long depth, long inside) {
  constexpr long PER = K_PER_WORD<T>;
  const bool amx = use_amx<T>(), whole = inside == depth && (!amx || rows % BLOCK == 0);
  if (!a.mask && whole && (a.column == 1 || PER == 1))
    return {a.x + top * a.row + k * a.column, a.row, PER * a.column};
  T* to = scratch<T>(Use::A, round_up(rows, BLOCK) * round_up(depth, PER * BLOCK));
  if (a.column == 1) {
    for (long i = 0; i < rows; ++i) {
      load_row(to + i * depth, a, top + i, k, inside);
      std::memset(to + i * depth + inside, 0, (depth - inside) * sizeof(T));
    }
    return {to, depth, PER};
  }
  const MatrixView<T> transposed{a.x, a.mask, a.column, a.row};
  if (!amx) {
    pack_k_words<T>((uint32_t*)to, rows, transposed, k, depth, inside, top, rows);
    return {to, PER, PER * rows};
  }
  for (long i = 0; i < rows; i += BLOCK)  // tiles want rows with K in memory
    for (long j = 0; j < depth; j += PER * BLOCK) {
      uint32_t words[BLOCK][BLOCK] = {};
      pack_k_words<T>(words[0], BLOCK, transposed, k + j, PER * BLOCK,
                      std::min(PER * BLOCK, inside - j), top + i, std::min<long>(BLOCK, rows - i));
      transpose_block((uint32_t*)(to + i * depth + j), depth / PER,
                      [&](int word) { return block_u32(words[word]); });
    }
  return {to, depth, PER};
}

// The first part of a split K begins with the bias, the others with the zeros behind it.
inline const float* bias_rows(long n, const float* bias, long parts) {
  const long padded = round_up(n, NR), size = (parts > 1 ? 2 : 1) * padded;
  if (bias && size == n) return bias;
  float* start = scratch<float>(Use::WEIGHTS, size);
  std::memset(start, 0, size * sizeof(float));
  if (bias) std::memcpy(start, bias, n * sizeof(float));
  return start;
}

// T is the type of A and of the products; a B of floats is rounded to it.
template <class T, class B, class Out>
void gemm(ffi::ThreadPool& pool, long m, long n, long k, const MatrixView<T>& a,
          const MatrixView<B>& b, const float* bias, const Out* mask, Out* out) {
  // Plan.
  constexpr long PER = K_PER_WORD<T>, UNIT = PER == 1 ? 1 : 2 * BLOCK;  // of K, to split it by
  const bool amx = use_amx<T>();
  const long steps = ceil_div(k, UNIT), parts = std::clamp(k / 256, 1L, 8L);
  const long padded = round_up(n, NR), width = block_size(padded / NR, NC / NR) * NR;
  const long height = round_up(block_size(m, MC), amx ? BLOCK : 1);
  const long down = ceil_div(m, height), across = ceil_div(padded, width);
  const long c_rows = round_up(height, 2 * BLOCK);
  const float* start = bias_rows(n, bias, parts);
  float* partial = scratch<float>(Use::PARTIAL, parts > 1 ? parts * m * padded : 0);
  const bool direct = !amx && k <= KC && parts == 1 && n % LANES == 0;  // stored where it belongs
  const bool b_in_place = PER == 1 && !b.mask && b.column == 1 && n % LANES == 0;

  const auto compute = [&](long item) {
    const long part = item % parts, left = item / parts % across * width,
               top = item / parts / across * height;
    const long rows = std::min(height, m - top), columns = std::min(width, n - left);
    const long first = steps * part / parts * UNIT, last = steps * (part + 1) / parts * UNIT;
    float* c = scratch<float>(Use::C, direct ? 0 : c_rows * width);  // a panel after the other
    std::optional<AmxTiles> tiles;
    if (amx) tiles.emplace();
    for (long at = first; at < last; at += KC) {
      const long inside = std::min(KC, std::min(k, last) - at);
      const long depth = round_up(inside, amx ? UNIT : PER);
      const PackedA<T> packed = pack_a(a, top, rows, at, depth, inside);
      for (long panel = 0; panel < columns; panel += NR) {
        const long count = std::min<long>(NR, columns - panel);
        uint32_t* right = scratch<uint32_t>(Use::B, round_up(KC / PER, BLOCK) * NR);
        const auto pack = b.column == 1 ? pack_k_words<T, B> : pack_k_words_transposed<T, B>;
        if (!b_in_place) pack(right, NR, b, at, depth, inside, left + panel, count);
        KSegment<T> segment{packed.a, right, depth / PER};
        if (b_in_place) segment.b = (const uint32_t*)(b.x + at * b.row + left + panel);
        const Strides strides{packed.lda, packed.a_step, b_in_place ? b.row : NR};
        const float* bias_row = start + (part > 0) * padded + left + panel;
        float* sums = c + panel * c_rows;
        if (amx) {
          for (long i = 0; i < rows; i += 2 * BLOCK) {
            const KSegment<bfloat16> rest{(const bfloat16*)packed.a + i * packed.lda, right,
                                          segment.count};
            float* here = sums + i * NR;
            run_microkernel_amx(here, NR, at > first ? here : bias_row, &rest, 1, strides,
                                {BLOCK * packed.lda, BLOCK * NR}, rows - i > BLOCK, count);
          }
          continue;
        }
        for_blocks(rows, MR, [&](long i, long tall) {
          Strides here = strides;
          here.a = i * packed.lda;
          const long to = (top + i) * n + left + panel;
          if (direct)
            run_microkernel<T>(tall, count, StridedRows<Out>{out + to, n, offset(mask, to)},
                               StartRows{bias_row, 0}, &segment, 1, here);
          else
            run_microkernel<T>(
                tall, count, StridedRows<float>{sums + i * NR, NR},
                at > first ? StartRows{sums + i * NR, NR} : StartRows{bias_row, 0}, &segment, 1,
                here);
        });
      }
    }
    for (long panel = 0; panel < columns && !direct; panel += NR)
      for (long i = 0; i < rows; ++i) {
        const float* sums = c + panel * c_rows + i * NR;
        const long to = (top + i) * n + left + panel, count = std::min<long>(NR, columns - panel);
        if (parts == 1)
          store_row(out + to, sums, offset(mask, to), count);
        else
          std::memcpy(partial + (part * m + top + i) * padded + left + panel, sums,
                      count * sizeof(float));
      }
  };
  parallel_for(pool, down * across * parts, compute, m * n * k > 1 << 19);

  if (parts == 1) return;
  parallel_for(pool, down, [&](long block) {  // reduce
    for (long i = block * height; i < std::min(m, (block + 1) * height); ++i) {
      float* sum = partial + i * padded;
      for (long part = 1; part < parts; ++part)
        for (long c = 0; c < n; ++c) sum[c] += sum[part * m * padded + c];
      store_row(out + i * n, sum, offset(mask, i * n), n);
    }
  });
}

}  // namespace
