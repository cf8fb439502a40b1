// Dense layers.

#pragma once

#include <optional>

#include "pack.h"
#include "scratch.h"
#include "parallel_for.h"

namespace {

// A factor of a product of matrices: element (i, j) is x[i * row + j * column], or zero where its
// gate is closed. One of the two steps is 1.
template <class T>
struct Factor {
  const T *x, *gate;
  long row, column;
  Factor turned() const { return {x, gate, column, row}; }
};

// A row of a product begins with these: the first part of its sum with the bias, others with zeros,
// which lie behind.
const float* beginnings(long n, const float* bias, long parts) {
  const long padded = round_up(n, PANEL), size = (parts > 1 ? 2 : 1) * padded;
  if (bias && size == n) return bias;
  float* start = memory<float>(MATRIX, size);
  std::memset(start, 0, size * sizeof(float));
  if (bias) std::memcpy(start, bias, n * sizeof(float));
  return start;
}

// The parts of a product, (m, n) in padded rows, added up and written; `turned`, as (n, m).
template <class Out>
void sum_parts(ffi::ThreadPool& pool, float* totals, long parts, long m, long n, long height,
               const Out* gate, Out* out, bool turned) {
  const long padded = round_up(n, PANEL);
  parallel(pool, (m + height - 1) / height, [&](long block) {
    for (long i = block * height; i < std::min(m, (block + 1) * height); ++i) {
      float* sum = totals + i * padded;
      for (long part = 1; part < parts; ++part)
        for (long c = 0; c < n; ++c) sum[c] += sum[part * m * padded + c];
      if (!turned) write(out + i * n, sum, gate ? gate + i * n : nullptr, n);
      for (long c = 0; c < n && turned; ++c)
        write(out + c * m + i, sum + c, gate ? gate + c * m + i : nullptr, 1);
    }
  });
}

// The product of two matrices, (m, k) and (k, n), of dense layers. Blocks of it are shared among
// threads, and where k is long, parts of it too.
void dense(ffi::ThreadPool& pool, long m, long n, long k, Factor<float> a, Factor<float> b,
           const float* bias, const float* gate, float* out) {
  constexpr long DEPTH = 512;
  const long parts = std::min(8L, std::max(1L, k / 256)), padded = round_up(n, PANEL);
  const long height = share(m, 8 * ROWS), width = share(padded / PANEL, 7) * PANEL;
  const long down = (m + height - 1) / height, across = (padded + width - 1) / width;
  const float* start = beginnings(n, bias, parts);
  float* totals = memory<float>(TOTALS, parts > 1 ? parts * m * padded : 0);
  const bool at_once = k <= DEPTH && parts == 1 && n % LANES == 0;  // written where they belong
  const bool b_here = !b.gate && b.column == 1 && n % LANES == 0;
  const auto some = [&](long item) {
    const long part = item % parts, left = item / parts % across * width,
               top = item / parts / across * height;
    const long rows = std::min(height, m - top), columns = std::min(width, n - left);
    const long first = k * part / parts, last = k * (part + 1) / parts;
    float* sums = memory<float>(SUMS, height * width);
    for (long at = first; at < last; at += DEPTH) {
      const long deep = std::min(DEPTH, last - at);
      const float* x = a.x + top * a.row + at * a.column;
      long row = a.row, step = a.column;
      if (a.gate) {
        // As it lies: along k, or along m.
        const long lines = a.column == 1 ? rows : deep, length = a.column == 1 ? deep : rows;
        const long apart = a.column == 1 ? a.row : a.column;
        float* to = memory<float>(LEFT, lines * length);
        x = to, row = a.column == 1 ? length : 1, step = a.column == 1 ? 1 : length;
        for (long i = 0; i < lines; ++i) {
          const long from = top * a.row + at * a.column + i * apart;
          copy(to + i * length, a.x + from, a.gate + from, length);
        }
      }
      const float* y = b.x + at * b.row + left;
      long b_step = b.row, panel_step = PANEL;
      if (!b_here) {
        float* to = memory<float>(RIGHT, round_up(deep, TILE) * width);
        y = to, b_step = PANEL, panel_step = round_up(deep, TILE) * PANEL;
        for (long panel = 0; panel < columns; panel += PANEL, to += panel_step) {
          const long count = std::min<long>(PANEL, columns - panel);
          if (count < PANEL) std::memset(to, 0, panel_step * sizeof(float));
          for (long i = 0; i < deep && b.column == 1; ++i) {
            const long from = (at + i) * b.row + left + panel;
            copy(to + i * PANEL, b.x + from, b.gate ? b.gate + from : nullptr, count);
          }
          for (long c = 0; c < count && b.column != 1; c += TILE)
            for (long i = 0; i < deep; i += TILE) {
              // Columns that lie along k.
              const float* from = b.x + at + i + (left + panel + c) * b.column;
              const long here = std::min<long>(TILE, deep - i);
              uint32_t* made = (uint32_t*)to + i * PANEL + c;
              if (here == TILE && c + TILE <= count && !b.gate) {
                transpose(made, PANEL,
                          [&](int j) { return *(const Words16*)(from + j * b.column); });
                continue;
              }
              float lines[TILE][TILE] = {};
              for (long j = 0; j < std::min<long>(TILE, count - c); ++j, from += b.column)
                copy(lines[j], from, b.gate ? b.gate + (from - b.x) : nullptr, here);
              transpose(made, PANEL, [&](int j) { return *(const Words16*)lines[j]; });
            }
        }
      }
      for (long panel = 0; panel < columns; panel += PANEL)
        by_parts(rows, [&](long i, long tall) {
          float* sum = sums + panel * height + i * PANEL;
          const Term<float> term{x + i * row, (const uint32_t*)y + panel / PANEL * panel_step,
                                 deep};
          const float* begin = at > first ? sum : start + (part > 0) * padded + left + panel;
          const long to = (top + i) * n + left + panel;
          choose<float>(tall, columns - panel)(
              at_once ? out + to : sum, begin, &term, 1, {row, step, b_step, at_once ? n : PANEL},
              at_once && gate ? gate + to : nullptr);
        });
    }
    for (long panel = 0; panel < columns && !at_once; panel += PANEL)
      for (long i = 0; i < rows; ++i) {
        const float* sum = sums + panel * height + i * PANEL;
        const long to = (top + i) * n + left + panel,
                   count = std::min<long>(PANEL, columns - panel);
        if (parts == 1)
          write(out + to, sum, gate ? gate + to : nullptr, count);
        else
          std::memcpy(totals + (part * m + top + i) * padded + left + panel, sum,
                      count * sizeof(float));
      }
  };
  parallel(pool, down * across * parts, some, m * n * k > 1 << 19);
  if (parts > 1) sum_parts(pool, totals, parts, m, n, height, gate, out, false);
}

// The same in bfloat16, a B in float being rounded; on tiles, if there are any. `turned`, the
// product is written as (n, m).
template <class B, class Out>
void dense(ffi::ThreadPool& pool, long m, long n, long k, Factor<bfloat16> a, Factor<B> b,
                 const float* bias, const Out* gate, Out* out, bool turned) {
  constexpr long DEEP = 2 * TILE;  // what a tile sums over
  const long steps = (k + DEEP - 1) / DEEP, parts = std::clamp(k / 256, 1L, 8L);
  const long padded = round_up(n, PANEL);
  const long height = round_up(share(m, 128), TILE), width = share(padded / PANEL, 7) * PANEL;
  const long down = (m + height - 1) / height, across = (padded + width - 1) / width;
  const float* start = beginnings(n, bias, parts);
  float* totals = memory<float>(TOTALS, parts > 1 ? parts * m * padded : 0);
  const bool at_once = !tiled<bfloat16>() && parts == 1 && !turned && n % LANES == 0;
  const bool a_here = a.column == 1 && !a.gate &&
                      (tiled<bfloat16>() ? m % TILE == 0 && k % DEEP == 0 : k % 2 == 0);
  // Elements beside each other, from (i, j) of a factor on, as bfloat16.
  const auto take = [](bfloat16* to, const auto& factor, long i, long j, long count) {
    const long from = i * factor.row + j * factor.column;
    if constexpr (sizeof(*factor.x) == 2)
      copy(to, factor.x + from, factor.gate ? factor.gate + from : nullptr, count);
    else
      write<bfloat16>(to, factor.x + from, nullptr, count);
  };
  const auto some = [&](long item) {
    const long part = item % parts, left = item / parts % across * width,
               top = item / parts / across * height;
    const long rows = std::min(height, m - top), columns = std::min(width, n - left);
    const long first = steps * part / parts * DEEP, last = steps * (part + 1) / parts * DEEP;
    const long deep = last - first, inside = std::min(deep, k - first);
    const long summed = tiled<bfloat16>() ? deep : round_up(inside, 2);
    const bfloat16* x = a.x + top * a.row + first;
    const long row = a_here ? a.row : deep;
    bfloat16 lines[TILE][DEEP];
    if (!a_here) {
      bfloat16* to = memory<bfloat16>(LEFT, round_up(rows, TILE) * deep);
      x = to;
      for (long i = 0; i < rows && a.column == 1; ++i, to += deep) {
        take(to, a, top + i, first, inside);
        std::memset(to + inside, 0, (deep - inside) * sizeof(bfloat16));
      }
      for (long i = 0; i < rows && a.column != 1; i += TILE, to += TILE * deep)
        for (long j = 0; j < deep; j += DEEP) {
          std::memset(lines, 0, sizeof(lines));  // pairs of k, each with 16 rows
          for (long line = 0; line < std::min(DEEP, inside - j); ++line)
            take(lines[line / 2] + line % 2 * TILE, a, top + i, first + j + line,
                 std::min<long>(TILE, rows - i));
          transpose((uint32_t*)(to + j), deep / 2,
                    [&](int line) { return paired(lines[line], TILE); });
        }
    }
    uint32_t* words = memory<uint32_t>(RIGHT, deep / 2 * PANEL);
    float* room = memory<float>(SUMS, 2 * TILE * PANEL);
    std::optional<Tiles> tiles;
    if (tiled<bfloat16>()) tiles.emplace();
    for (long panel = 0; panel < columns; panel += PANEL) {
      const long count = std::min<long>(PANEL, columns - panel);
      for (long j = 0; j < summed && b.column == 1; j += 2) {
        if constexpr (sizeof(B) == 2)
          if (!b.gate && j + 1 < inside) {
            pair_up(words + j / 2 * PANEL, b.x + (first + j) * b.row + left + panel, count, b.row);
            continue;
          }
        if constexpr (sizeof(B) == 4)
          if (!b.gate && j + 1 < inside && count % TILE == 0) {
            const float* from = b.x + (first + j) * b.row + left + panel;
            pair_rounded(words + j / 2 * PANEL, from, from + b.row, count);
            continue;
          }
        bfloat16 both[2][PANEL] = {};
        for (int i = 0; i < 2 && j + i < inside; ++i)
          take(both[i], b, first + j + i, left + panel, count);
        pair_up(words + j / 2 * PANEL, both[0], round_up(count, TILE), PANEL);
      }
      for (long c = 0; c < count && b.column != 1; c += TILE)
        for (long j = 0; j < deep; j += DEEP) {
          // Columns that lie along k.
          if (inside - j < DEEP || count - c < TILE) std::memset(lines, 0, sizeof(lines));
          for (long i = 0; i < std::min<long>(TILE, count - c); ++i)
            take(lines[i], b, first + j, left + panel + c + i, std::min(DEEP, inside - j));
          transpose(words + j / 2 * PANEL + c, PANEL,
                    [&](int i) { return *(const Words16*)lines[i]; });
        }
      for (long i = 0; i < rows; i += 2 * TILE) {
        const long here = std::min<long>(2 * TILE, rows - i), to = top + i;
        const float* begin = start + (part > 0) * padded + left + panel;
        const Term<bfloat16> term{x + i * row, words, summed / 2};
        if (at_once) {
          by_parts(here, [&](long r, long tall) {
            const long at = (to + r) * n + left + panel;
            choose<bfloat16, Out>(tall, count)(out + at, begin, &term, 1,
                                               {row, 2, PANEL, n, r * row},
                                               gate ? gate + at : nullptr);
          });
          continue;
        }
        if (tiled<bfloat16>())
          multiply_tiles(room, begin, &term, 1, {row, 2, PANEL, PANEL},
                         {TILE * row, TILE * PANEL}, here > TILE, count);
        else
          by_parts(here, [&](long r, long tall) {
            choose<bfloat16>(tall, count)(room + r * PANEL, begin, &term, 1,
                                          {row, 2, PANEL, PANEL, r * row}, nullptr);
          });
        if (parts > 1) {
          for (long r = 0; r < here; ++r)
            std::memcpy(totals + (part * m + to + r) * padded + left + panel, room + r * PANEL,
                        count * sizeof(float));
          continue;
        }
        for (long r = 0; r < here && !turned; ++r) {
          const long at = (to + r) * n + left + panel;
          write(out + at, room + r * PANEL, gate ? gate + at : nullptr, count);
        }
        for (long r = 0; r < here && turned; r += TILE)
          for (long c = 0; c < count; c += TILE) {
            float turn[TILE][TILE];
            transpose((uint32_t*)turn, TILE, [&](int line) {
              return *(const Words16*)(room + (r + line) * PANEL + c);
            });
            for (long line = 0; line < std::min<long>(TILE, count - c); ++line) {
              const long at = (left + panel + c + line) * m + to + r;
              write(out + at, turn[line], gate ? gate + at : nullptr,
                    std::min<long>(TILE, here - r));
            }
          }
      }
    }
  };
  parallel(pool, down * across * parts, some, m * n * k > 1 << 19);
  if (parts > 1) sum_parts(pool, totals, parts, m, n, height, gate, out, turned);
}

// Either of them.
template <class T, class B, class Out>
void dense_product(ffi::ThreadPool& pool, long m, long n, long k, Factor<T> a, Factor<B> b,
                   const float* bias, const Out* gate, Out* out) {
  if constexpr (sizeof(T) == 4) {
    dense(pool, m, n, k, a, b, bias, gate, out);
  } else {
    if constexpr (sizeof(B) == 2)
      if (m > n) {  // a gradient whose rows are many is that of the other factor, turned
        dense(pool, n, m, k, b.turned(), a.turned(), bias, gate, out, true);
        return;
      }
    dense(pool, m, n, k, a, b, bias, gate, out, false);
  }
}

}  // namespace
