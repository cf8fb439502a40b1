// Winograd transforms for 3x3 kernels at stride 2 (Winograd 1980; Lavin and Gray 2016).
//
// Stride 2 splits an axis into its even and odd pixels (polyphase). The even taps are a filter of 2
// taps, F(2, 2): 3 products for 4. The odd tap is multiplied directly: 2 products. So 5 products do
// for 6 on each axis, and 25 for 36 on both. With e the even pixels and o the odd, a tile of two
// outputs
//
//     y0 = e0 w0 + o0 w1 + e1 w2                 y1 = e1 w0 + o1 w1 + e2 w2
//
// becomes
//
//     y0 = (e0 - e1) w0 + o0 w1 + middle         y1 = (e2 - e1) w2 + o1 w1 + middle
//     middle = e1 (w0 + w2)
//
// The weight gradient transforms x and y alike. The data gradient makes from y0, y1 and the y
// before them
//
//     e0 = (y - y0) w2 + middle     o0 = y0 w1     e1 = (y1 - y0) w0 + middle     o1 = y1 w1
//     middle = y0 (w0 + w2)
//
// Transformed images lie in a buffer of matrices, one for each two components of the axes, with a
// row for each tile; all between the transforms is products of matrices. With bfloat16, sums are
// made in float32 and rounded once; without bfloat16 instructions the buffer holds floats.

#pragma once

#include "weight_grad_one_channel.h"

namespace {

// A component of a tile along an axis: `depth` numbers for each channel. `second`: it belongs to
// the tile's second position, which the last tile of an odd size does not have.
struct Component {
  int depth;
  bool second;
};
// A row of the transform: number `place` of a component is pixel `one` of those that a tile reads
// along the axis, or the sum of it and `sign` times the pixel `other`.
struct TransformRow {
  int component, place, one, other = -1, sign = 1;
  constexpr bool copies() const { return other < 0; }
};
template <int N, int M>
struct Transform {
  Component components[N];
  TransformRow rows[M];
};
// Of x: (e0 - e1, o0), e1, (e2 - e1, o1).
constexpr Transform<3, 5> X_TRANSFORM{
    {{2, false}, {1, false}, {2, true}},
    {{0, 0, 0, 2, -1}, {0, 1, 1}, {1, 0, 2}, {2, 0, 4, 2, -1}, {2, 1, 3}}};
// Of y in the weight gradient: y0, y0 + y1, y1.
constexpr Transform<3, 3> Y_TRANSFORM{{{1, false}, {1, false}, {1, true}},
                                      {{0, 0, 0}, {1, 0, 0, 1}, {2, 0, 1}}};
// Of y in the data gradient: y - y0, y0, y1 - y0, y1, read from y on.
constexpr Transform<4, 4> DATA_GRAD_TRANSFORM{
    {{1, false}, {1, false}, {1, true}, {1, true}},
    {{0, 0, 0, 1, -1}, {1, 0, 1}, {2, 0, 2, 1, -1}, {3, 0, 2}}};

// A row of the transform applied to pixels x(i).
template <class X>
inline VecF32 apply_transform(const TransformRow& row, const X& x) {
  if (row.copies()) return x(row.one);
  return row.sign < 0 ? x(row.one) - x(row.other) : x(row.one) + x(row.other);
}

// Tiles that are transformed and multiplied together, from image `image` and row of tiles `row` on:
// how many rows and columns, [0] of first positions and [1] of second ones.
struct TileBlock {
  long image, row, images, rows[2], columns[2];
};

// All blocks: several whole images each, or some rows of one. `images_per_word` images
// count as one.
struct TileBlocking {
  long batch, down[2], across[2], taken, several, per_image;

  // `numbers`: how many of each tile are to stay in the cache.
  TileBlocking(const ConvShape& s, long numbers, long images_per_word = 1)
      : batch(ceil_div(s.batch, images_per_word)),
        down{(s.y_size[0] + 1) / 2, s.y_size[0] / 2},
        across{(s.y_size[1] + 1) / 2, s.y_size[1] / 2} {
    // At most the tiles of 14 by 14 positions, or with vectors of 16 of two such images.
    const long most = std::clamp<long>(147456 / numbers, BLOCK, 49 * LANES / 8);
    taken = block_size(down[0], std::clamp(most / across[0], 1L, down[0]));
    per_image = ceil_div(down[0], taken);
    several = per_image > 1
                  ? 1
                  : std::clamp(most / (down[0] * across[0]), 1L, std::max(1L, s.batch / 8));
  }
  long count() const { return ceil_div(batch, several) * per_image; }
  TileBlock operator[](long item) const {
    const long image = item / per_image * several, row = item % per_image * taken;
    return {image, row, std::min(several, batch - image),
            {std::min(taken, down[0] - row), std::min(taken, down[1] - row)},
            {across[0], across[1]}};
  }
};

// The layout of a block in the transform domain: for components (i, j) a matrix
// (tiles, depth(i) * depth(j) * channels) from word begin[i][j] on. Channels count in words.
template <int N>
struct TransformLayout {
  const Component (&axis)[N];
  TileBlock block;
  long channels, begin[N][N], size = 0;

  TransformLayout(const Component (&axis)[N], const TileBlock& block, long channels)
      : axis(axis), block(block), channels(channels) {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) begin[i][j] = size, size += tiles(i, j) * depth(i, j);
  }
  long rows(int i) const { return block.rows[axis[i].second]; }
  long columns(int j) const { return block.columns[axis[j].second]; }
  long tiles(int i, int j) const { return block.images * rows(i) * columns(j); }
  long depth(int i, int j) const { return axis[i].depth * axis[j].depth * channels; }
};

// Where to write the components of a tile, and then those of the next in its row. What the tile
// does not have goes to `nowhere`.
template <int N>
struct TransformCursor {
  const TransformLayout<N>& layout;
  uint32_t *base, *nowhere, *at[N][N];
  long step[N][N];

  void begin_row(long image, long row) {
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) {
        const bool there = row < layout.rows(i);
        step[i][j] = there ? layout.depth(i, j) : 0;
        at[i][j] = there ? base + layout.begin[i][j] +
                               (image * layout.rows(i) + row) * layout.columns(j) * step[i][j]
                         : nowhere;
      }
  }
  void drop_second_column() {
    for (int j = 0; j < N; ++j)
      for (int i = 0; i < N && layout.axis[j].second; ++i) at[i][j] = nowhere;
  }
  void advance() {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) at[i][j] += step[i][j];
  }
};

// A row of pixels as words: of one image, whose neighbouring channels make a word, masked as it is
// read; or of two images, packed before.
template <class T>
struct ImageRow {
  const T *x, *mask;

  template <bool MASKED>
  VecU32 load(long from) const {
    if constexpr (COMPUTES_IN_F32<T>) {
      const VecF32 numbers = load_f32(x + from);
      return (VecU32)(MASKED ? apply_relu_mask(numbers, mask + from) : numbers);
    } else {
      const VecU32 words = vec_u32(x + from);
      return MASKED ? apply_relu_mask(words, mask + from) : words;
    }
  }
  void advance(long count) { x += count, mask += count; }
};
struct PackedRow {
  const uint32_t* x;

  template <bool>
  VecU32 load(long from) const {
    return vec_u32(x + from);
  }
  void advance(long count) { x += count; }
};

// Half n of the words as floats, and the words of all halves; a float has no halves.
template <int HALVES>
inline VecF32 half_of(VecU32 words, int n) {
  return (VecF32)(HALVES == 1 ? words : n ? words & 0xffff0000u : words << 16);
}
inline VecU32 join_halves(const VecF32 (&sums)[1]) { return (VecU32)sums[0]; }
inline VecU32 join_halves(const VecF32 (&sums)[2]) {
#if defined(__AVX512BF16__)
  const __m512i turn = _mm512_set_epi16(  //
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
      23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (VecU32)_mm512_permutexvar_epi16(turn, (__m512i)round_to_bf16(sums[0], sums[1]));
#else
  return __builtin_convertvector(round_to_bf16(sums[0]), VecU32) |
         __builtin_convertvector(round_to_bf16(sums[1]), VecU32) << 16;
#endif
}

// Transforms a block of x or y. Each tile reads IN by IN pixels, `step` pixels from those of the
// next; the first is at `low`. IMAGES > 1: a word is the same place of so many images.
template <int IN, const auto& TRANSFORM, int IMAGES = 1, int N, class T>
void input_transform(uint32_t* to, const TransformLayout<N>& layout, const MaskedView<T>& source,
                     long step, long low) {
  constexpr auto& ROWS = TRANSFORM.rows;
  constexpr int OUT = std::size(ROWS), HALVES = COMPUTES_IN_F32<T> ? 1 : 2;
  constexpr int PER = IMAGES > 1 ? 1 : HALVES;  // elements of an image in a word
  using Row = std::conditional_t<IMAGES == 1, ImageRow<T>, PackedRow>;
  const TileBlock& block = layout.block;
  const long channels = source.channels, line = source.width * channels;
  uint32_t* room = scratch<uint32_t>(Use::A, (IMAGES > 1 ? IN + 1 : 1) * line + 4 * channels);
  std::memset(room, 0, line * sizeof(uint32_t));
  const T* zeros = (const T*)room;
  TransformCursor<N> cursor{layout, to, room + line};
  Row rows[IN];

  // One tile, of whose columns those from `from` up to `end` are inside of the image.
  const auto transform_tile = [&](auto masked, auto inside, long from, long end) {
    for (long c = 0; c < layout.channels; c += LANES) {
      VecU32 pixels[IN][IN] = {};
      const auto along_row = [&](int i, int j, int n) {
        return apply_transform(ROWS[j], [&](int j) { return half_of<HALVES>(pixels[i][j], n); });
      };
      VecF32 row[IN][OUT];  // of floats all rows first; halves would want too many registers
#pragma GCC unroll 8
      for (int i = 0; i < IN; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < IN; ++j)
          if (inside || (j >= from && j < end))
            pixels[i][j] = rows[i].template load<masked>(j * channels + c * PER);
#pragma GCC unroll 8
        for (int j = 0; j < OUT && HALVES == 1; ++j) row[i][j] = along_row(i, j, 0);
      }
#pragma GCC unroll 8
      for (int j = 0; j < OUT; ++j) {
        VecF32 column[IN][HALVES];
#pragma GCC unroll 8
        for (int i = 0; i < IN; ++i)
#pragma GCC unroll 2
          for (int n = 0; n < HALVES; ++n)
            column[i][n] = HALVES == 1 ? row[i][j] : along_row(i, j, n);
#pragma GCC unroll 8
        for (int i = 0; i < OUT; ++i) {
          const TransformRow &down = ROWS[i], &across = ROWS[j];
          const int place =
              down.place * TRANSFORM.components[across.component].depth + across.place;
          VecU32* const out = (VecU32*)(cursor.at[down.component][across.component] +
                                        place * layout.channels + c);
          if (down.copies() && across.copies()) {
            *out = pixels[down.one][across.one];
            continue;
          }
          VecF32 sums[HALVES];
#pragma GCC unroll 2
          for (int n = 0; n < HALVES; ++n)
            sums[n] = apply_transform(down, [&](int i) { return column[i][n]; });
          *out = join_halves(sums);
        }
      }
    }
  };
  const auto transform_row = [&](auto masked) {
    for (long column = 0; column < block.columns[0]; ++column) {
      if (column == block.columns[1]) cursor.drop_second_column();
      const long from = -(column * step + low), end = source.width + from;
      if (from <= 0 && end >= IN)
        transform_tile(masked, std::true_type(), 0, IN);
      else
        transform_tile(masked, std::false_type(), from, end);
      for (int i = 0; i < IN; ++i) rows[i].advance(step * channels);
      cursor.advance();
    }
  };
  // Points rows[i] to a row of the source, or zeros; of two images, packs it first.
  const auto find_row = [&](int i, long image, long row) {
    const long y = (block.row + row) * step + low + i;
    const auto find = [&](int n, const T*& numbers, const T*& masks) {
      const long number = (block.image + image) * IMAGES + n;
      const bool inside = number < source.batch && y >= 0 && y < source.height;
      const long from = (number * source.height + y) * line;
      numbers = inside ? source.x + from : zeros;
      masks = inside && source.mask ? source.mask + from : zeros;
    };
    if constexpr (IMAGES == 1) {
      find(0, rows[i].x, rows[i].mask);
    } else {
      uint32_t* words = room + line + 4 * channels + (y - low) % IN * line;
      rows[i].x = words;
      ImagePair<T> both;
      for (int n = 0; n < IMAGES; ++n) find(n, both.x[n], both.mask[n]);
      // Rows that the tiles above have packed are there already.
      for (long c = 0; c < line && (row == 0 || i >= IN - step); c += NR) {
        VecU32 packed[2];
        source.mask ? both.template load<true>(packed, c) : both.template load<false>(packed, c);
        vec_u32(words + c) = packed[0], vec_u32(words + c + LANES) = packed[1];
      }
    }
    rows[i].advance(low * channels);
  };
  for (long image = 0; image < block.images; ++image)
    for (long row = 0; row < block.rows[0]; ++row) {
      cursor.begin_row(image, row);
      for (int i = 0; i < IN; ++i) find_row(i, image, row);
      source.mask && IMAGES == 1 ? transform_row(std::true_type())
                                 : transform_row(std::false_type());
    }
}

}  // namespace
