// A tile of an image with zeros around it, copied to where it stays in the cache.
//
// In it the taps of a kernel row are neighbours, so the patches of a convolution are rows of a
// matrix that is never stored: they are read where their pixels lie (implicit im2col).

#pragma once

#include "conv_shape.h"
#include "parallel_for.h"
#include "relu_mask.h"
#include "scratch.h"

namespace {

// Images to read: zero outside, and zero where their mask, if any, is <= 0.
template <class T>
struct MaskedView {
  const T *x, *mask;
  long height, width, channels, batch;
};

template <class T>
struct PaddedTile {
  const MaskedView<T>& source;
  long step, left, width, top = 0;  // in pixels of the source
  long above, below;                // the first and last row read, beside a position's own
  T* pixels = nullptr;

  PaddedTile(const MaskedView<T>& source, long step, long left, long width, long above, long below)
      : source(source), step(step), left(left), width(width), above(above), below(below) {}
  PaddedTile(const MaskedView<T>& source, const std::vector<Polyphase>& components)
      : source(source) {
    step = components[0].source_step;
    left = above = 1 << 30;
    width = below = -(1 << 30);
    for (const Polyphase& component : components)
      for (const KernelRow& row : component.rows) {
        above = std::min(above, row.dy), below = std::max(below, row.dy);
        left = std::min(left, row.dx);
        width = std::max(width, step * (component.size[1] - 1) + row.dx + row.taps);
      }
    width = std::max(0L, width - left);
  }

  // The rows that `count` rows of positions read.
  long rows(long count) const { return std::max(0L, step * (count - 1) + below - above + 1); }
  // The elements they need, with room for reading on behind the end.
  long size(long count) const {
    return (rows(count) * width + 16 * step) * source.channels + 64;
  }
  // How many rows of positions, of `count`, to take at a time so that the tile stays in L2.
  long rows_that_fit(long count) const {
    const long row = std::max(1L, step * width * source.channels);
    return std::clamp<long>((131072 / long(sizeof(T)) - size(1)) / row + 1, 1, count);
  }

  void read(T* to, long image, long first, long count) {
    pixels = to, top = step * first + above;
    for (long row = 0; row < rows(count); ++row, to += width * source.channels)
      read_row(to, image, top + row);
    std::memset(to, 0, (16 * step * source.channels + 64) * sizeof(T));
  }
  void read_row(T* to, long image, long i) const {
    const long channels = source.channels;
    const long from = std::min(std::max(0L, -left), width),
               end = std::max(from, std::min(width, source.width - left));
    if (i < 0 || i >= source.height) {
      std::memset(to, 0, width * channels * sizeof(T));
      return;
    }
    const long first = ((image * source.height + i) * source.width + left + from) * channels;
    std::memset(to, 0, from * channels * sizeof(T));
    copy_masked(to + from * channels, source.x + first, offset(source.mask, first),
                (end - from) * channels);
    std::memset(to + end * channels, 0, (width - end) * channels * sizeof(T));
  }
  // What a kernel row reads for position (i, j).
  const T* at(const KernelRow& row, long i, long j) const {
    return pixels +
           ((step * i + row.dy - top) * width + step * j + row.dx - left) * source.channels;
  }
};

// Calls f(tile, image, top, bottom) for all images, some rows of positions at a time.
template <class T, class F>
void for_padded_tiles(ffi::ThreadPool& pool, const std::vector<Polyphase>& components,
                      const MaskedView<T>& source, long batch, bool worth, const F& f) {
  const long rows = components[0].size[0];  // no other component has more
  const PaddedTile<T> whole(source, components);
  const long taken = whole.rows_that_fit(rows), tiles = ceil_div(rows, taken);
  const auto one = [&](long item) {
    const long image = item / tiles, top = item % tiles * taken;
    const long bottom = std::min(rows, top + taken);
    PaddedTile<T> tile = whole;
    tile.read(scratch<T>(Use::A, tile.size(bottom - top)), image, top, bottom - top);
    f(tile, image, top, bottom);
  };
  parallel_for(pool, batch * tiles, one, worth);
}

}  // namespace
