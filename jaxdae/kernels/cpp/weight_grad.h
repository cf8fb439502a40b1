// The general weight gradient: patches(x)^T y, summed over all positions.
//
// K runs over the positions of all images, a row of them in each segment. With bfloat16 a K pair
// is the same position of two images (or of two pieces of one). K is split into at most SPLIT_K
// parts, each with sums of its own, so that threads share it and the order of sums stays fixed.

#pragma once

#include "pack.h"
#include "padded_tile.h"

namespace {

constexpr int SPLIT_K = 4;

// Adds up the parts of a split K: the kernel's gradient, (taps, x_channels, y_channels). Row i of a
// part, from column n on (a multiple of NR), is at place(i, n).
template <class Place>
void reduce_split_k(ffi::ThreadPool& pool, const ConvShape& s, const float* parts, long count,
                    long size, float* out, const Place& place) {
  const long rows = s.taps() * s.x_channels, columns = s.y_channels;
  const long blocks = std::min(rows, std::max(1L, rows * columns / 4096));
  parallel_for(pool, blocks, [&](long block) {
    for (long i = rows * block / blocks; i < rows * (block + 1) / blocks; ++i)
      for (long n = 0; n < columns; n += NR) {
        float sums[NR];
        for (long c = 0; c < NR; c += LANES) {
          const float* from = parts + place(i, n) + c;
          VecF32 sum = vec_f32(from);
          for (long part = 1; part < count; ++part) sum += vec_f32(from + part * size);
          vec_f32(sums + c) = sum;
        }
        std::memcpy(out + i * columns + n, sums,
                    std::min<long>(NR, columns - n) * sizeof(float));
      }
  });
}

template <class T>
void weight_grad(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& x,
                 const MaskedView<T>& y, float* out) {
  constexpr int PER = K_PER_WORD<T>;
  // Plan. C is a panel of (rows, NR) for each kernel row and NR outputs.
  const Polyphase component = forward_component(s);
  const PaddedTile<T> whole(x, {component});
  const long rows = s.kernel[1] * s.x_channels, kernel_rows = s.kernel[0];
  const long width = round_up(s.y_channels, NR), size = kernel_rows * rows * width;
  // A piece is some rows of an image, or all. A chunk is `several` words of PER pieces each: so
  // many that loading and storing C pays.
  const long tall =
      std::min(whole.rows_that_fit(s.y_size[0]), ceil_div(s.y_size[0] * s.batch, PER));
  const long per_image = ceil_div(s.y_size[0], tall);
  const long pieces = s.batch * per_image, wanted = ceil_div(pieces, PER);
  const long several = per_image > 1 ? 1
                                     : std::clamp(200 / (s.y_size[0] * s.y_size[1]), 1L,
                                                  std::max(1L, wanted / SPLIT_K));
  const long chunks = ceil_div(wanted, several), parts = std::min<long>(SPLIT_K, chunks);
  const bool y_in_place = PER == 1 && !y.mask && s.y_channels % LANES == 0;
  const long x_line = whole.width * s.x_channels, y_line = s.y_size[1] * s.y_channels;
  const long longest = std::max(x_line, y_line), tile_size = whole.rows(tall) * x_line;

  struct Piece {
    long image, top, count;
  };
  const auto piece_of = [&](long index) -> Piece {
    const long top = index % per_image * tall;
    return {index / per_image, top, index < pieces ? std::min(tall, s.y_size[0] - top) : 0};
  };
  // Packs a row of the padded tiles of a word's pieces.
  const auto pack_x = [&](uint32_t* to, T* raw, const Piece (&piece)[PER], long row) {
    for (int i = 0; i < PER; ++i) {
      T* pixels = PER == 1 ? (T*)to : raw + i * longest;
      if (piece[i].count && row < whole.rows(piece[i].count))
        whole.read_row(pixels, piece[i].image, s.stride * piece[i].top + whole.above + row);
      else
        std::memset(pixels, 0, x_line * sizeof(T));
    }
    if (PER == 2) pack_vnni(to, (uint16_t*)raw, x_line, longest);
  };
  // Packs a row of y, `width` words for each position; returns where it is.
  const auto pack_y = [&](uint32_t* to, T* raw, const Piece (&piece)[PER], long row) {
    const bool unpadded = width == s.y_channels;
    if (y_in_place)
      return (const uint32_t*)(y.x + (piece[0].image * s.y_size[0] + piece[0].top + row) * y_line);
    for (int i = 0; i < PER; ++i) {
      const long from = (piece[i].image * s.y_size[0] + piece[i].top + row) * y_line;
      T* numbers = PER == 1 && unpadded ? (T*)to : raw + i * longest;
      if (row < piece[i].count)
        copy_masked(numbers, y.x + from, offset(y.mask, from), y_line);
      else
        std::memset(numbers, 0, y_line * sizeof(T));
    }
    if (PER == 2 && unpadded) pack_vnni(to, (uint16_t*)raw, y_line, longest);
    for (long j = 0; j < s.y_size[1] && !unpadded; ++j) {
      uint32_t* position = to + j * width;
      if (PER == 1)
        std::memcpy(position, raw + j * s.y_channels, s.y_channels * 4);
      else
        pack_vnni(position, (uint16_t*)raw + j * s.y_channels, s.y_channels, longest);
      std::memset(position + s.y_channels, 0, (width - s.y_channels) * 4);
    }
    return (const uint32_t*)to;
  };

  float* partial = scratch<float>(Use::PARTIAL, parts * size);
  parallel_for(pool, parts, [&](long part) {
    float* sums = partial + part * size;
    std::memset(sums, 0, size * sizeof(float));
    T* raw = scratch<T>(Use::RAW, PER * longest);
    uint32_t* left = scratch<uint32_t>(Use::A, several * tile_size);
    uint32_t* right = scratch<uint32_t>(Use::B, several * tall * s.y_size[1] * width);
    std::vector<KSegment<T>> segments;  // a row of positions in each
    for (long chunk = chunks * part / parts; chunk < chunks * (part + 1) / parts; ++chunk) {
      segments.clear();
      for (long word = 0; word < several; ++word) {
        Piece piece[PER];
        long count = 0;
        for (int i = 0; i < PER; ++i) {
          piece[i] = piece_of((chunk * several + word) * PER + i);
          count = std::max(count, piece[i].count);
        }
        if (!count) break;
        uint32_t* tile = left + word * tile_size;
        for (long row = 0; row < whole.rows(count); ++row)
          pack_x(tile + row * x_line, raw, piece, row);
        for (long row = 0; row < count; ++row) {
          const uint32_t* b =
              pack_y(right + segments.size() * s.y_size[1] * width, raw, piece, row);
          segments.push_back({(const T*)(tile + row * s.stride * x_line), b, s.y_size[1]});
        }
      }
      for (long r = 0; r < kernel_rows; ++r) {
        const KernelRow& row = component.rows[r];
        const long shift =
            (row.dy - whole.above) * x_line + (row.dx - whole.left) * s.x_channels;
        for_blocks(rows, MR, [&](long m, long height) {
          for (long n = 0; n < width; n += NR) {
            float* c = sums + (r * width + n) * rows + m * NR;
            run_microkernel<T>(height, s.y_channels - n, StridedRows<float>{c, NR},
                               StartRows{c, NR}, segments.data(), segments.size(),
                               {PER, PER * s.stride * s.x_channels,
                                y_in_place ? s.y_channels : width, PER * (shift + m), n});
          }
        });
      }
    }
  });
  reduce_split_k(pool, s, partial, parts, size, out, [&](long i, long n) {
    return (i / rows * width + n) * rows + i % rows * NR;
  });
}

}  // namespace
