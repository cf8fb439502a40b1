// Winograd: transforms.

#pragma once

#include "weight_grad.h"

namespace {

// Fewer products for kernels of 3 by 3 at stride 2 on images of even sides. Of what two positions
// beside each other, a pair, see of an axis, let e be the even pixels and o the odd:
//
//     y0 = e0 w0 + o0 w1 + e1 w2               y1 = e1 w0 + o1 w1 + e2 w2
//
// As in Winograd's minimal filters, five products do for six:
//
//     y0 = (e0 - e1) w0 + o0 w1 + middle       y1 = (e2 - e1) w2 + o1 w1 + middle
//     middle = e1 (w0 + w2)
//
// So do 25 for 36 of both axes. A correlation has the same. The pixels that a scatter makes of y0
// and y1, and of the y before them, are
//
//     e0 = (y - y0) w2 + middle     o0 = y0 w1     e1 = (y1 - y0) w0 + middle     o1 = y1 w1
//     middle = y0 (w0 + w2)
//
// What is multiplied lies in planes, one for each two parts of the axes, with a row for each pair;
// so do the sums, and all between is products of matrices. Sums of bfloat16 are made of floats and
// rounded once; where there are no products of bfloat16, planes are of floats.

// A part of a pair along an axis: so many numbers for each channel, and whether it belongs to the
// second position: of an odd number of positions the last has none beside it.
struct Part {
  int depth;
  bool second;
};
// A number of a part: one of those that are read of a pair along an axis, or its sum with another.
struct Number {
  int part, place, one, other = -1, sign = 1;
  constexpr bool read() const { return other < 0; }
};
template <int N, int M>
struct Axis {
  Part parts[N];
  Number numbers[M];
};
// (e0 - e1, o0), e1, (e2 - e1, o1)
constexpr Axis<3, 5> PIXELS{{{2, false}, {1, false}, {2, true}},
                            {{0, 0, 0, 2, -1}, {0, 1, 1}, {1, 0, 2}, {2, 0, 4, 2, -1}, {2, 1, 3}}};
// y0, y0 + y1, y1
constexpr Axis<3, 3> POSITIONS{{{1, false}, {1, false}, {1, true}},
                               {{0, 0, 0}, {1, 0, 0, 1}, {2, 0, 1}}};
// y - y0, y0, y1 - y0, y1, read from y on
constexpr Axis<4, 4> NEIGHBOURS{{{1, false}, {1, false}, {1, true}, {1, true}},
                                {{0, 0, 0, 1, -1}, {1, 0, 1}, {2, 0, 2, 1, -1}, {3, 0, 2}}};
template <class X>
inline Floats summed(const Number& number, const X& x) {
  if (number.read()) return x(number.one);
  return number.sign < 0 ? x(number.one) - x(number.other) : x(number.one) + x(number.other);
}

// Pairs that are done together: how many are begun, and how many of those have a second position.
struct Pairs {
  long image, row, images, rows[2], columns[2];
};

// Which those are: all of several images, or some rows of one. Images of a word, `per`, are one.
struct Portions {
  long batch, down[2], across[2], taken, several, parts;
  Portions(const Geometry& g, long numbers, long per = 1)  // for each pair, that are to stay near
      : batch((g.batch + per - 1) / per),
        down{(g.grid[0] + 1) / 2, g.grid[0] / 2},
        across{(g.grid[1] + 1) / 2, g.grid[1] / 2} {
    // At most those of one image of 14 by 14 positions on vectors of 8, of two on vectors of 16.
    const long most = std::clamp<long>(147456 / numbers, TILE, 49 * LANES / 8);
    taken = share(down[0], std::clamp(most / across[0], 1L, down[0]));
    parts = (down[0] + taken - 1) / taken;
    several =
        parts > 1 ? 1 : std::clamp(most / (down[0] * across[0]), 1L, std::max(1L, g.batch / 8));
  }
  long count() const { return (batch + several - 1) / several * parts; }
  Pairs operator[](long item) const {
    const long image = item / parts * several, row = item % parts * taken;
    return {image, row, std::min(several, batch - image),
            {std::min(taken, down[0] - row), std::min(taken, down[1] - row)},
            {across[0], across[1]}};
  }
};

// Where numbers of pairs are: in planes, (pairs, numbers of both parts, channels).
template <int N>
struct Planes {
  const Part (&axis)[N];
  Pairs pairs;
  long channels, begin[N][N], size = 0;

  Planes(const Part (&axis)[N], const Pairs& pairs, long channels)
      : axis(axis), pairs(pairs), channels(channels) {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) begin[i][j] = size, size += count(i, j) * depth(i, j);
  }
  long rows(int i) const { return pairs.rows[axis[i].second]; }
  long columns(int j) const { return pairs.columns[axis[j].second]; }
  long count(int i, int j) const { return pairs.images * rows(i) * columns(j); }
  long depth(int i, int j) const { return axis[i].depth * axis[j].depth * channels; }
};

// Where the parts of a pair begin, and then those of the next in its row. What is not there is
// `nowhere`.
template <int N>
struct Walk {
  const Planes<N>& planes;
  uint32_t *base, *nowhere, *at[N][N];
  long step[N][N];

  void begin(long image, long row) {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) {
        const bool there = row < planes.rows(i);
        step[i][j] = there ? planes.depth(i, j) : 0;
        at[i][j] = there ? base + planes.begin[i][j] +
                               (image * planes.rows(i) + row) * planes.columns(j) * step[i][j]
                         : nowhere;
      }
  }
  void end() {  // a last pair without a second
    for (int j = 0; j < N; ++j)
      for (int i = 0; i < N && planes.axis[j].second; ++i) at[i][j] = nowhere;
  }
  void advance() {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) at[i][j] += step[i][j];
  }
};

// What is read of one image, whose channels make words; and words of two that were made before.
template <class T>
struct Alone {
  const T *x, *gate;

  template <bool GATED>
  Words take(long from) const {
    if constexpr (IN_FLOATS<T>)
      return (Words)(GATED ? gated(widened(x + from), gate + from) : widened(x + from));
    else
      return GATED ? passed(*(const Words*)(x + from), gate + from) : *(const Words*)(x + from);
  }
  void advance(long count) { x += count, gate += count; }
};
struct Kept {
  const uint32_t* x;

  template <bool>
  Words take(long from) const {
    return *(const Words*)(x + from);
  }
  void advance(long count) { x += count; }
};
// Of HALVES, what is added up, and what becomes of it.
template <int HALVES>
inline Floats half(Words words, int n) {
  return (Floats)(HALVES == 1 ? words : n ? words & 0xffff0000u : words << 16);
}
inline Words rounded(const Floats (&sums)[1]) { return (Words)sums[0]; }
inline Words rounded(const Floats (&sums)[2]) {
#if defined(__AVX512BF16__)
  const __m512i turn = _mm512_set_epi16(  //
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
      23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (Words)_mm512_permutexvar_epi16(turn, (__m512i)narrowed(sums[0], sums[1]));
#else
  return __builtin_convertvector(narrowed(sums[0]), Words) |
         __builtin_convertvector(narrowed(sums[1]), Words) << 16;
#endif
}

// Planes of what is read: of each pair IN by IN pixels, `step` from those of the next and the first
// of them at `low`.
template <int IN, const auto& AXIS, int IMAGES = 1, int N, class T>
void fill(uint32_t* to, const Planes<N>& planes, const Source<T>& source, long step, long low) {
  constexpr auto& NUMBERS = AXIS.numbers;
  constexpr int OUT = std::size(NUMBERS), HALVES = IN_FLOATS<T> ? 1 : 2;
  constexpr int PER = IMAGES > 1 ? 1 : HALVES;  // numbers of an image in a word
  using Row = std::conditional_t<IMAGES == 1, Alone<T>, Kept>;
  const Pairs& pairs = planes.pairs;
  const long channels = source.channels, line = source.width * channels;
  uint32_t* room = memory<uint32_t>(LEFT, (IMAGES > 1 ? IN + 1 : 1) * line + 4 * channels);
  std::memset(room, 0, line * sizeof(uint32_t));
  const T* zeros = (const T*)room;
  Walk<N> walk{planes, to, room + line};
  Row rows[IN];
  const auto pair = [&](auto with_gate, auto inside, long from, long until) {
    for (long c = 0; c < planes.channels; c += LANES) {
      Words read[IN][IN] = {};
      const auto along_row = [&](int i, int j, int n) {
        return summed(NUMBERS[j], [&](int j) { return half<HALVES>(read[i][j], n); });
      };
      Floats row[IN][OUT];  // of floats, all of a row at once; halves are too many
#pragma GCC unroll 8
      for (int i = 0; i < IN; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < IN; ++j)
          if (inside || (j >= from && j < until))
            read[i][j] = rows[i].template take<with_gate>(j * channels + c * PER);
#pragma GCC unroll 8
        for (int j = 0; j < OUT && HALVES == 1; ++j) row[i][j] = along_row(i, j, 0);
      }
#pragma GCC unroll 8
      for (int j = 0; j < OUT; ++j) {
        Floats column[IN][HALVES];
#pragma GCC unroll 8
        for (int i = 0; i < IN; ++i)
#pragma GCC unroll 2
          for (int n = 0; n < HALVES; ++n)
            column[i][n] = HALVES == 1 ? row[i][j] : along_row(i, j, n);
#pragma GCC unroll 8
        for (int i = 0; i < OUT; ++i) {
          const Number &down = NUMBERS[i], &across = NUMBERS[j];
          const int place = down.place * AXIS.parts[across.part].depth + across.place;
          Words* const out =
              (Words*)(walk.at[down.part][across.part] + place * planes.channels + c);
          if (down.read() && across.read()) {
            *out = read[down.one][across.one];
            continue;
          }
          Floats sums[HALVES];
#pragma GCC unroll 2
          for (int n = 0; n < HALVES; ++n)
            sums[n] = summed(down, [&](int i) { return column[i][n]; });
          *out = rounded(sums);
        }
      }
    }
  };
  const auto along = [&](auto with_gate) {
    for (long column = 0; column < pairs.columns[0]; ++column) {
      if (column == pairs.columns[1]) walk.end();
      const long from = -(column * step + low), until = source.width + from;
      if (from <= 0 && until >= IN)
        pair(with_gate, std::true_type(), 0, IN);
      else
        pair(with_gate, std::false_type(), from, until);
      for (int i = 0; i < IN; ++i) rows[i].advance(step * channels);
      walk.advance();
    }
  };
  for (long image = 0; image < pairs.images; ++image)
    for (long row = 0; row < pairs.rows[0]; ++row) {
      walk.begin(image, row);
      for (int i = 0; i < IN; ++i) {
        const long at = (pairs.row + row) * step + low + i;
        const auto find = [&](int n, const T*& numbers, const T*& gates) {
          const long number = (pairs.image + image) * IMAGES + n;
          const bool inside = number < source.batch && at >= 0 && at < source.height;
          const long from = (number * source.height + at) * line;
          numbers = inside ? source.x + from : zeros;
          gates = inside && source.gate ? source.gate + from : zeros;
        };
        if constexpr (IMAGES == 1) {
          find(0, rows[i].x, rows[i].gate);
        } else {
          uint32_t* words = room + line + 4 * channels + (at - low) % IN * line;
          rows[i].x = words;
          Together<T> both;
          for (int n = 0; n < IMAGES; ++n) find(n, both.x[n], both.gate[n]);
          // What the pairs before have made of it is there.
          for (long c = 0; c < line && (row == 0 || i >= IN - step); c += PANEL) {
            Words made[2];
            source.gate ? both.template take<true>(made, c) : both.template take<false>(made, c);
            *(Words*)(words + c) = made[0], *(Words*)(words + c + LANES) = made[1];
          }
        }
        rows[i].advance(low * channels);
      }
      source.gate && IMAGES == 1 ? along(std::true_type()) : along(std::false_type());
    }
}

}  // namespace
