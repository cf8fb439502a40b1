// The gradient of the kernel.

#pragma once

#include "pack.h"
#include "padded_tile.h"

namespace {

// The parts of a matrix added up: row(i, n) says where in a part row i is, from its column n on, a
// multiple of PANEL.
template <class Row>
void add_up(ffi::ThreadPool& pool, const Geometry& g, const float* parts, long count, long size,
            float* out, const Row& row) {
  const long rows = g.taps() * g.channels, columns = g.outputs;
  const auto sum = [&](float* sums, const float* from, long number) {
    for (long c = 0; c < number; c += LANES) {
      Floats all = *(const Floats*)(from + c);
      for (long part = 1; part < count; ++part) all += *(const Floats*)(from + part * size + c);
      *(Floats*)(sums + c) = all;
    }
  };
  if (g.turned) {
    const long across = (g.channels + TILE - 1) / TILE;
    parallel(pool, g.taps() * across, [&](long item) {
      const long tap = item / across, c = item % across * TILE;
      const long here = std::min<long>(TILE, g.channels - c);
      float* to = out + g.first() + tap * g.tap_step() + c;
      for (long n = 0; n < columns; n += TILE) {
        float block[TILE][TILE] = {}, turn[TILE][TILE];
        for (long i = 0; i < here; ++i)
          sum(block[i], parts + row(tap * g.channels + c + i, n / PANEL * PANEL) + n % PANEL, TILE);
        transpose((uint32_t*)turn, TILE, [&](int i) { return *(const Words16*)block[i]; });
        for (long i = 0; i < std::min<long>(TILE, columns - n); ++i)
          std::memcpy(to + (n + i) * g.channels, turn[i], here * sizeof(float));
      }
    });
    return;
  }
  const long blocks = std::min(rows, std::max(1L, rows * columns / 4096));
  parallel(pool, blocks, [&](long block) {
    for (long i = rows * block / blocks; i < rows * (block + 1) / blocks; ++i)
      for (long n = 0; n < columns; n += PANEL) {
        float sums[PANEL];
        sum(sums, parts + row(i, n), PANEL);
        const long here = std::min<long>(PANEL, columns - n);
        std::memcpy(out + i * columns + n, sums, here * sizeof(float));
      }
  });
}

// A correlation, of some images (or some rows of one) at a time, and in parts that are added up. In
// a word are the same places of as many images, or of as many pieces of one.
template <class T>
void correlate(ffi::ThreadPool& pool, const Geometry& g, const Source<T>& image,
               const Source<T>& grid, float* out) {
  constexpr int PER = PER_WORD<T>;
  const Phase phase = gathered(g);
  const Window<T> whole(image, {phase});
  // Sums lie in panels of outputs, with a row for each number of a run of taps.
  const long rows = g.kernel[1] * g.channels, groups = g.kernel[0];
  const long width = round_up(g.outputs, PANEL), size = groups * rows * width;
  // A piece: some rows of an image, or all. A chunk: words of several pieces, so that the sums pay.
  // Of a single image there are pieces enough to fill a word.
  const long tall = std::min(whole.fitting(g.grid[0]), (g.grid[0] * g.batch + PER - 1) / PER);
  const long chunks = (g.grid[0] + tall - 1) / tall;
  const long pieces = g.batch * chunks, wanted = (pieces + PER - 1) / PER;
  const long several =
      chunks > 1 ? 1 : std::clamp(200 / (g.grid[0] * g.grid[1]), 1L, std::max(1L, wanted / PARTS));
  const long all = (wanted + several - 1) / several, parts = std::min<long>(PARTS, all);
  const bool direct = PER == 1 && !grid.gate && g.outputs % LANES == 0;
  const long line = whole.width * g.channels, high = whole.rows(tall);  // of a piece's pixels
  const long one = high * line, step = g.stride * g.channels, across = g.grid[1] * g.outputs;
  float* totals = memory<float>(TOTALS, parts * size);
  parallel(pool, parts, [&](long part) {
    float* sums = totals + part * size;
    std::memset(sums, 0, size * sizeof(float));
    const long longest = std::max(line, across);
    T* raw = memory<T>(RAW, PER * longest);
    uint32_t* left = memory<uint32_t>(LEFT, several * one);
    uint32_t* right = memory<uint32_t>(RIGHT, several * tall * g.grid[1] * width);
    std::vector<Term<T>> terms;  // for each row of positions
    for (long chunk = all * part / parts; chunk < all * (part + 1) / parts; ++chunk) {
      terms.clear();
      for (long number = 0; number < several; ++number) {
        struct Piece {
          long image, top, count;
        } piece[PER];
        long count = 0;
        for (int i = 0; i < PER; ++i) {
          const long index = (chunk * several + number) * PER + i, top = index % chunks * tall;
          piece[i] = {index / chunks, top, index < pieces ? std::min(tall, g.grid[0] - top) : 0};
          count = std::max(count, piece[i].count);
        }
        if (!count) break;
        uint32_t* to = left + number * one;
        for (long row = 0; row < whole.rows(count); ++row, to += line) {
          for (int i = 0; i < PER; ++i) {
            T* pixels = PER == 1 ? (T*)to : raw + i * longest;
            if (piece[i].count && row < whole.rows(piece[i].count))
              whole.read_row(pixels, piece[i].image,
                             g.stride * piece[i].top + whole.above + row);
            else
              std::memset(pixels, 0, line * sizeof(T));
          }
          if (PER == 2) pair_up(to, (uint16_t*)raw, line, longest);
        }
        for (long row = 0; row < count; ++row) {
          to = right + terms.size() * g.grid[1] * width;
          const T* begin = (T*)to;
          for (int i = 0; i < PER; ++i) {
            const long from = ((piece[i].image * g.grid[0]) + piece[i].top + row) * across;
            if (direct) {
              begin = grid.x + from;
              break;
            }
            T* numbers = PER == 1 && width == g.outputs ? (T*)to : raw + i * longest;
            if (row < piece[i].count)
              copy(numbers, grid.x + from, grid.gate ? grid.gate + from : nullptr, across);
            else
              std::memset(numbers, 0, across * sizeof(T));
          }
          terms.push_back({(const T*)(left + number * one + row * g.stride * line),
                           (const uint32_t*)begin, g.grid[1]});
          if (direct || (PER == 1 && width == g.outputs)) continue;
          if (width == g.outputs) {
            pair_up(to, (uint16_t*)raw, across, longest);
            continue;
          }
          for (long j = 0; j < g.grid[1]; ++j, to += width) {
            if (PER == 1)
              std::memcpy(to, raw + j * g.outputs, g.outputs * 4);
            else
              pair_up(to, (uint16_t*)raw + j * g.outputs, g.outputs, longest);
            std::memset(to + g.outputs, 0, (width - g.outputs) * 4);
          }
        }
      }
      for (long group = 0; group < groups; ++group) {
        // From a line to where the pixels of a run begin.
        const Run& run = phase.runs[group];
        const long shift =
            (run.down - whole.above) * line + (run.right - whole.left) * g.channels;
        by_parts(rows, [&](long m, long height) {
          for (long n = 0; n < width; n += PANEL) {
            float* sum = sums + (group * width + n) * rows + m * PANEL;
            choose<T>(height, g.outputs - n)(
                sum, sum, terms.data(), terms.size(),
                {PER, PER * step, direct ? g.outputs : width, PANEL, PER * (shift + m), n},
                nullptr);
          }
        });
      }
    }
  });
  add_up(pool, g, totals, parts, size, out, [&](long i, long n) {
    return (i / rows * width + n) * rows + i % rows * PANEL;
  });
}

// The same of a single channel: all numbers of a patch are rows of one product, and each number of
// the grid is read once. A word has the same place in two images.

// What is read of the images of a word, from where on: words of the same numbers of each, zeros
// where gates are closed.
template <class T>
struct Together {
  static constexpr int COUNT = IN_FLOATS<T> ? 1 : 2;
  const T *x[COUNT], *gate[COUNT];

  template <bool GATED, int N>
  void take(Words (&out)[N], long from) const {
    if constexpr (IN_FLOATS<T>) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n, from += LANES) {
        const Floats numbers = widened(x[0] + from);
        out[n] = (Words)(GATED ? gated(numbers, gate[0] + from) : numbers);
      }
    } else {
      static_assert(N == 2);
      Words a = *(const Words*)(x[0] + from), b = *(const Words*)(x[1] + from);
      if (GATED) a = passed(a, gate[0] + from), b = passed(b, gate[1] + from);
      interleave(out, a, b);
    }
  }
  void advance(long count) {
#pragma GCC unroll 2
    for (int i = 0; i < COUNT; ++i) x[i] += count, gate[i] += count;
  }
};

// sums (PATCH, N * LANES) += patches^T grid, of `rows` by `columns` positions. A row of pixels is
// `line` words.
template <class T, int N, bool GATED>
void correlate_patches(float* sums, const uint32_t* pixels, long line, long stride,
                       const Together<T>& grid, long rows, long columns, long outputs) {
  const Together<T> grids = grid;  // which stays in registers
  Floats sum[PATCH][N];
#pragma GCC unroll 16
  for (int m = 0; m < PATCH; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[m][n] = *(const Floats*)(sums + m * PANEL + n * LANES);
  for (long row = 0, from = 0; row < rows; ++row) {
    const uint32_t* at[SIDE];
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; ++i) at[i] = pixels + (row * stride + i) * line;
    for (long column = 0; column < columns * stride; column += stride, from += outputs) {
      Words right[N];
      grids.template take<GATED>(right, from);
#pragma GCC unroll 16
      for (int m = 0; m < PATCH; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n)
          sum[m][n] = multiply_add<Multiplied<T>>(
              sum[m][n], Words{} + at[m / SIDE][column + m % SIDE], right[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < PATCH; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) *(Floats*)(sums + m * PANEL + n * LANES) = sum[m][n];
}

template <class T>
void correlate_single(ffi::ThreadPool& pool, const Geometry& g, const Source<T>& image,
                     const Source<T>& grid, float* out) {
  constexpr int PER = Together<T>::COUNT, N = LANES / 8;  // registers suffice
  const Phase phase = gathered(g);
  const Window<T> whole(image, {phase});
  // A piece: some rows of as many images as make a word, or all.
  const long tall = whole.fitting(g.grid[0]), chunks = (g.grid[0] + tall - 1) / tall;
  const long all = (g.batch + PER - 1) / PER * chunks, parts = std::min<long>(PARTS, all);
  const long line = whole.width, size = PATCH * g.outputs;
  float* totals = memory<float>(TOTALS, parts * size);
  parallel(pool, parts, [&](long part) {
    float* sums = totals + part * size;
    std::memset(sums, 0, size * sizeof(float));
    T* raw = memory<T>(RAW, PER * line);
    uint32_t* pixels = memory<uint32_t>(LEFT, whole.rows(tall) * line);
    for (long piece = all * part / parts; piece < all * (part + 1) / parts; ++piece) {
      const long first = piece / chunks * PER, top = piece % chunks * tall;
      const long rows = std::min(tall, g.grid[0] - top);
      Together<T> grids;
      for (int i = 0; i < PER; ++i) {
        // Instead of an image that is not there, one that is, times zero.
        const long number = std::min(first + i, g.batch - 1);
        const long from = (number * g.grid[0] + top) * g.grid[1] * g.outputs;
        grids.x[i] = grid.x + from, grids.gate[i] = (grid.gate ? grid.gate : grid.x) + from;
      }
      uint32_t* to = pixels;
      for (long row = 0; row < whole.rows(rows); ++row, to += line) {
        for (int i = 0; i < PER; ++i) {
          T* numbers = sizeof(T) == 4 ? (T*)to : raw + i * line;
          if (first + i < g.batch)
            whole.read_row(numbers, first + i, g.stride * top + whole.above + row);
          else
            std::memset(numbers, 0, line * sizeof(T));
        }
        if constexpr (PER == 2)
          pair_up(to, raw, line, line);
        else if constexpr (sizeof(T) == 2)
          for (long k = 0; k < line; ++k) to[k] = uint32_t(raw[k]) << 16;
      }
      const auto f = grid.gate ? correlate_patches<T, N, true> : correlate_patches<T, N, false>;
      for (long n = 0; n < g.outputs; n += N * LANES) {
        f(sums + n / PANEL * PANEL * PATCH + n % PANEL, pixels, line, g.stride, grids, rows,
          g.grid[1], g.outputs);
        grids.advance(N * LANES);
      }
    }
  });
  add_up(pool, g, totals, parts, size, out,
         [&](long i, long n) { return n * PATCH + i * PANEL; });
}

}  // namespace
