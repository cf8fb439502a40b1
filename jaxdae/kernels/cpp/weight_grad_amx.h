// The weight gradient on AMX tiles.
//
// What a product sums over, here positions, must be K pairs of neighbours. So an image becomes
// planes, one for each channel and each remainder of a pixel's place modulo the stride. In a plane
// a tap is only a shift. The rows of a plane are longer than y's by the reach of the taps; in
// between, and between images, y counts as zero.

#pragma once

#include <optional>

#include "weight_grad.h"

namespace {

// Where a tap reads, along one axis: which remainder modulo the stride, and by how much shifted.
struct TapShift {
  long plane, shift;
};
struct TapShifts {
  std::vector<TapShift> taps;
  long least, reach;  // the first tap's shift, and the last one's from there

  TapShifts(const ConvShape& s, int axis) {
    for (long tap = 0; tap < s.kernel[axis]; ++tap) {
      const long from = tap - s.pad_low[axis], plane = (from % s.stride + s.stride) % s.stride;
      taps.push_back({plane, (from - plane) / s.stride});
    }
    least = (-s.pad_low[axis] - taps[0].plane) / s.stride;
    reach = taps.back().shift - least;
  }
};

inline void weight_grad_amx(ffi::ThreadPool& pool, const ConvShape& shape,
                            const MaskedView<bfloat16>& x, const MaskedView<bfloat16>& y,
                            float* out) {
  // Plan.
  const long s = shape.stride, taps = shape.taps(), outputs = shape.y_channels;
  const TapShifts down(shape, 0), across(shape, 1);
  const auto down_of = [&](long tap) { return down.taps[tap / shape.kernel[1]]; };
  const auto across_of = [&](long tap) { return across.taps[tap % shape.kernel[1]]; };
  const long pitch = round_up(shape.y_size[1] + across.reach, 2);  // of a plane's rows
  const long channels = round_up(shape.x_channels, BLOCK), patch = taps * shape.x_channels;
  const bool one_product = patch <= NR;  // all numbers of a patch are rows of one
  // A chunk: rows of one image, or several whole ones, so that loading and storing C pays.
  const long taken =
      std::clamp(131072 / (s * s * channels * pitch) - down.reach, 1L, shape.y_size[0]);
  const long several = taken < shape.y_size[0]
                           ? 1
                           : std::clamp(256 / ((taken + down.reach) * pitch), 1L, shape.batch);
  const long per_image = ceil_div(shape.y_size[0], taken);
  const long chunks = ceil_div(shape.batch, several) * per_image;
  const long parts = std::min<long>(SPLIT_K, chunks);
  const long most = round_up(several * (taken + down.reach) * pitch, 2 * BLOCK);  // positions
  const long length = most + round_up(down.reach * pitch + across.reach, 2 * BLOCK);  // of a plane
  const PaddedTile<bfloat16> whole(x, s, s * across.least, s * pitch, s * down.least,
                                   s * (down.least + down.reach) + s - 1);
  const long tile_size = whole.size(taken);
  const long n_panels = ceil_div(round_up(outputs, BLOCK), NR), c_panels = ceil_div(channels, NR);
  const long size = (one_product ? 1 : taps * c_panels) * n_panels * NR * NR;

  float* partial = scratch<float>(Use::PARTIAL, parts * size);
  parallel_for(pool, parts, [&](long part) {
    float* sums = partial + part * size;
    std::memset(sums, 0, size * sizeof(float));
    PaddedTile<bfloat16> tile = whole;
    bfloat16* pixels = scratch<bfloat16>(Use::RAW, several * tile_size + (pitch + 1) * outputs);
    bfloat16* y_row = pixels + several * tile_size;
    bfloat16* planes = scratch<bfloat16>(Use::TRANSFORM, channels * length);
    bfloat16* patches = scratch<bfloat16>(Use::A, one_product ? NR * most : 0);
    uint32_t* right = scratch<uint32_t>(Use::B, most / 2 * n_panels * NR);
    std::memset(y_row + shape.y_size[1] * outputs, 0,
                (pitch + 1 - shape.y_size[1]) * outputs * sizeof(bfloat16));
    std::optional<AmxTiles> tiles;
    tiles.emplace();
    std::vector<long> pixel_of_word;  // where in the pixels the K pairs of a plane are
    long depth = 0;                   // words of K

    const auto pack_y = [&](long image, long number, long top, long i, bool inside) {
      const long rows_before = number * (std::min(taken, shape.y_size[0] - top) + down.reach) + i;
      const long from = ((image + number) * shape.y_size[0] + top + i) * shape.y_size[1] * outputs;
      if (inside) copy_masked(y_row, y.x + from, offset(y.mask, from), shape.y_size[1] * outputs);
      for (long n = 0; n < outputs; n += NR) {
        const long here = inside ? std::min<long>(NR, outputs - n) : 0;
        uint32_t* to = right + (n / NR * most + rows_before * pitch) / 2 * NR;
        for (long j = 0; j < pitch; j += 2, to += NR) {
          pack_vnni(to, y_row + j * outputs + n, here, outputs);
          std::memset(to + here, 0, (NR - here) * 4);
        }
      }
    };
    const auto pack_planes = [&](long plane) {
      const bfloat16* corner =
          pixels + (plane / s * whole.width + plane % s) * shape.x_channels;
      const long ld = s * shape.x_channels;
      if (shape.x_channels <= 3)
        for (long c = 0; c < shape.x_channels; ++c)
          for (long word = 0; word < depth; ++word)
            pack_vnni((uint32_t*)(planes + c * length) + word, corner + pixel_of_word[word] + c, 1,
                      ld);
      else
        for (long word = 0; word < depth; word += BLOCK)
          for (long c = 0; c < channels; c += BLOCK)
            transpose_block((uint32_t*)(planes + c * length) + word, length / 2, [&](int i) {
              return vnni_block(corner + pixel_of_word[word + i] + c, ld);
            });
    };
    const auto multiply = [&](const bfloat16* a, long lda, long rows, long n, float* c) {
      const KSegment<bfloat16> segment{a, right + n * (most / 2), depth};
      run_microkernel_amx(c, NR, c, &segment, 1, {lda, 2, NR}, {BLOCK * lda, BLOCK * NR},
                          rows > BLOCK, outputs - n);
    };

    for (long chunk = chunks * part / parts; chunk < chunks * (part + 1) / parts; ++chunk) {
      const long first = chunk / per_image * several, top = chunk % per_image * taken;
      const long count = std::min(taken, shape.y_size[0] - top), rows = count + down.reach;
      const long images = std::min(shape.batch, first + several) - first;
      pixel_of_word.clear();
      for (long number = 0; number < images; ++number) {
        tile.read(pixels + number * tile_size, first + number, top, count);
        for (long i = 0; i < rows; ++i) {
          for (long j = 0; j < pitch; j += 2)
            pixel_of_word.push_back(number * tile_size +
                                    (s * i * whole.width + s * j) * shape.x_channels);
          pack_y(first, number, top, i, i < count);
        }
      }
      const long filled = pixel_of_word.size();
      depth = round_up(filled, BLOCK);
      for (long n = 0; n < n_panels; ++n)
        std::memset(right + (n * most / 2 + filled) * NR, 0, (depth - filled) * NR * 4);
      pixel_of_word.resize(depth, pixel_of_word.back());
      // The last taps read what lies behind, times zero: it must be a finite number.
      for (long c = 0; c < channels; ++c)
        std::memset(planes + c * length + 2 * depth, 0, (length - most) * sizeof(bfloat16));

      for (long plane = 0; plane < s * s; ++plane) {
        pack_planes(plane);
        // All taps that read this plane, a panel of channels at a time, which stays in the cache.
        for (long n = 0; n < (one_product ? 1 : outputs); n += NR)
          for (long c = 0; c < (one_product ? 1 : channels); c += NR)
            for (long tap = 0; tap < taps; ++tap) {
              if (down_of(tap).plane * s + across_of(tap).plane != plane) continue;
              const bfloat16* a = planes + c * length +
                                  (down_of(tap).shift - down.least) * pitch +
                                  across_of(tap).shift - across.least;
              if (!one_product)
                multiply(a, length, channels - c, n,
                         sums + ((tap * c_panels + c / NR) * n_panels + n / NR) * NR * NR);
              for (long row = 0; one_product && row < shape.x_channels; ++row)
                std::memcpy(patches + (tap * shape.x_channels + row) * most, a + row * length,
                            depth * 4);
            }
      }
      for (long n = 0; one_product && n < outputs; n += NR)
        multiply(patches, most, patch, n, sums + n * NR);
    }
  });
  reduce_split_k(pool, shape, partial, parts, size, out, [&](long number, long n) {
    const long c = one_product ? number : number % shape.x_channels,
               block = one_product ? 0 : number / shape.x_channels * c_panels + c / NR;
    return ((block * n_panels + n / NR) * NR + c % NR) * NR;
  });
}

}  // namespace
