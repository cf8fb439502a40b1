// Products on AMX tiles.

#pragma once

#include "microkernel.h"

namespace {

// Whether this processor multiplies tiles of bfloat16, 16 by 16 words, and the system lets it.
bool tiles_granted() {
#if defined(TILES)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl's
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
#else
  return false;
#endif
}
template <class T>
bool tiled() {
  return sizeof(T) == 2 && tiles_granted();
}

// The same on tiles, of bfloat16; the counts are whole tiles, and as many rows of a are read as the
// tiles have.
#if defined(TILES)
struct Tiles {
  struct __attribute__((packed)) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } shape;
  // Of sums and of what is multiplied there may be fewer rows, which takes less time; and of sums
  // fewer columns.
  explicit Tiles(long rows = TILE, long columns = TILE) {
    std::fill_n(shape.rows, 6, rows);
    for (int tile : {0, 1, 2, 3, 6, 7}) shape.bytes[tile] = 4 * columns;
    asm volatile("" ::"r"(&shape) : "memory");
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
};

template <int M, int N>
void multiply_tiles(float* sums, const float* start, const Term<bfloat16>* terms, long length,
                    const Strides& strides, Second second) {
  const long begin = start == sums ? strides.sums * 4 : 0, begin_second = begin ? second.sums : 0;
  asm volatile("" ::: "memory");  // GCC's intrinsics do not say what they read
  _tile_loadd(0, start, begin);
  if (N > 1) _tile_loadd(1, start + TILE, begin);
  if (M > 1) _tile_loadd(2, start + begin_second, begin);
  if (M > 1 && N > 1) _tile_loadd(3, start + begin_second + TILE, begin);
  for (const Term<bfloat16>* term = terms; term < terms + length; ++term) {
    const bfloat16* a = term->a;
    const uint32_t* b = term->b;
    for (long k = 0; k < term->count; k += TILE) {
      _tile_loadd(6, b, strides.b_step * 4);
      _tile_loadd(4, a, strides.row * 2);
      _tile_dpbf16ps(0, 4, 6);
      if (M > 1) _tile_loadd(5, a + second.a, strides.row * 2);
      if (M > 1) _tile_dpbf16ps(2, 5, 6);
      if (N > 1) _tile_loadd(7, b + TILE, strides.b_step * 4);
      if (N > 1) _tile_dpbf16ps(1, 4, 7);
      if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
      a += TILE * strides.step, b += TILE * strides.b_step;
    }
  }
  _tile_stored(0, sums, strides.sums * 4);
  if (N > 1) _tile_stored(1, sums + TILE, strides.sums * 4);
  if (M > 1) _tile_stored(2, sums + second.sums, strides.sums * 4);
  if (M > 1 && N > 1) _tile_stored(3, sums + second.sums + TILE, strides.sums * 4);
}

#else
struct Tiles {
  explicit Tiles(long = TILE, long = TILE) {}
};
template <int M, int N>
void multiply_tiles(float*, const float*, const Term<bfloat16>*, long, const Strides&,
                    Second) {}
#endif

void multiply_tiles(float* sums, const float* start, const Term<bfloat16>* terms, long length,
                    const Strides& strides, Second second, bool two, long columns) {
  const auto f = two ? (columns > TILE ? multiply_tiles<2, 2> : multiply_tiles<2, 1>)
                     : (columns > TILE ? multiply_tiles<1, 2> : multiply_tiles<1, 1>);
  f(sums, start, terms, length, strides, second);
}

}  // namespace
