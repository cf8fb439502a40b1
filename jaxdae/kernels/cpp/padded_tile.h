// A part of an image with zeros around it.

#pragma once

#include "conv_shape.h"
#include "parallel_for.h"
#include "relu_mask.h"
#include "scratch.h"

namespace {

// Images that are read: all outside is zero, and what is inside where its gate is closed.
template <class T>
struct Source {
  const T *x, *gate;
  long height, width, channels, batch;
};

// The part of an image that some rows of positions read, with the zeros around it.
template <class T>
struct Window {
  const Source<T>& source;
  long step, left, width, top = 0;  // of pixels
  long above, below;                // rows that are read beside those of the positions
  T* pixels = nullptr;

  Window(const Source<T>& source, long step, long left, long width, long above, long below)
      : source(source), step(step), left(left), width(width), above(above), below(below) {}
  Window(const Source<T>& source, const std::vector<Phase>& phases) : source(source) {
    step = phases[0].source_step;
    left = above = 1 << 30;
    width = below = -(1 << 30);
    for (const Phase& phase : phases)
      for (const Run& run : phase.runs) {
        above = std::min(above, run.down), below = std::max(below, run.down);
        left = std::min(left, run.right);
        width = std::max(width, step * (phase.size[1] - 1) + run.right + run.columns);
      }
    width = std::max(0L, width - left);
  }
  long rows(long count) const { return std::max(0L, step * (count - 1) + below - above + 1); }
  long size(long count) const {  // with room for reading on from the end
    return (rows(count) * width + 16 * step) * source.channels + 64;
  }
  // How many rows of positions to take at a time, of so many, that what they read stays near.
  long fitting(long count) const {
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
               until = std::max(from, std::min(width, source.width - left));
    if (i < 0 || i >= source.height) {
      std::memset(to, 0, width * channels * sizeof(T));
      return;
    }
    const long at = ((image * source.height + i) * source.width + left + from) * channels;
    std::memset(to, 0, from * channels * sizeof(T));
    copy(to + from * channels, source.x + at, source.gate ? source.gate + at : nullptr,
         (until - from) * channels);
    std::memset(to + until * channels, 0, (width - until) * channels * sizeof(T));
  }
  const T* at(const Run& run, long i, long j) const {
    return pixels +
           ((step * i + run.down - top) * width + step * j + run.right - left) * source.channels;
  }
};

// f(window, image, top, bottom) for all images, as many rows of positions at a time as stay near.
template <class T, class F>
void by_window(ffi::ThreadPool& pool, const std::vector<Phase>& phases, const Source<T>& source,
               long batch, bool worth, const F& f) {
  const long rows = phases[0].size[0];  // no other phase has more
  const Window<T> whole(source, phases);
  const long taken = whole.fitting(rows), parts = (rows + taken - 1) / taken;
  const auto some = [&](long item) {
    const long image = item / parts, top = item % parts * taken;
    const long bottom = std::min(rows, top + taken);
    Window<T> window = whole;
    window.read(memory<T>(LEFT, window.size(bottom - top)), image, top, bottom - top);
    f(window, image, top, bottom);
  };
  parallel(pool, batch * parts, some, worth);
}

}  // namespace
