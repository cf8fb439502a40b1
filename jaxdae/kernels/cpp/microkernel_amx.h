// The micro-kernel on AMX tiles, for bfloat16: 32 x 32 sums in four tiles of 16 x 16 words.
//
// K counts in whole tiles, and as many rows of A are read as the tiles have.

#pragma once

#include "microkernel.h"
#if defined(HAVE_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// True if the processor has AMX tiles of bfloat16 and the system lets this process use them.
inline bool amx_granted() {
#if defined(HAVE_AMX)
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl's
  static const bool granted = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return granted;
#else
  return false;
#endif
}
template <class T>
bool use_amx() {
  return sizeof(T) == 2 && amx_granted();
}

// Two blocks of 16 rows are taken together: the offsets of the second in A and in C.
struct SecondBlock {
  long a, c;
};

#if defined(HAVE_AMX)
// Configures the tiles while it lives: 0 to 3 hold C, 4 and 5 A, 6 and 7 B. Fewer rows of A and C,
// or columns of B and C, take less time.
struct AmxTiles {
  struct __attribute__((packed)) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  explicit AmxTiles(long rows = BLOCK, long columns = BLOCK) {
    std::fill_n(config.rows, 6, rows);
    for (int tile : {0, 1, 2, 3, 6, 7}) config.bytes[tile] = 4 * columns;
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~AmxTiles() { _tile_release(); }
};

template <int M, int N>
void microkernel_amx(float* c, long ldc, const float* start, const KSegment<bfloat16>* segments,
                     long length, const Strides& strides, SecondBlock second) {
  const long ld = start == c ? ldc * 4 : 0, start_second = ld ? second.c : 0;
  asm volatile("" ::: "memory");  // GCC's intrinsics do not say what they read
  _tile_loadd(0, start, ld);
  if (N > 1) _tile_loadd(1, start + BLOCK, ld);
  if (M > 1) _tile_loadd(2, start + start_second, ld);
  if (M > 1 && N > 1) _tile_loadd(3, start + start_second + BLOCK, ld);
  for (const KSegment<bfloat16>* segment = segments; segment < segments + length; ++segment) {
    const bfloat16* a = segment->a;
    const uint32_t* b = segment->b;
    for (long k = 0; k < segment->count; k += BLOCK) {
      _tile_loadd(6, b, strides.ldb * 4);
      _tile_loadd(4, a, strides.lda * 2);
      _tile_dpbf16ps(0, 4, 6);
      if (M > 1) _tile_loadd(5, a + second.a, strides.lda * 2);
      if (M > 1) _tile_dpbf16ps(2, 5, 6);
      if (N > 1) _tile_loadd(7, b + BLOCK, strides.ldb * 4);
      if (N > 1) _tile_dpbf16ps(1, 4, 7);
      if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
      a += BLOCK * strides.a_step, b += BLOCK * strides.ldb;
    }
  }
  _tile_stored(0, c, ldc * 4);
  if (N > 1) _tile_stored(1, c + BLOCK, ldc * 4);
  if (M > 1) _tile_stored(2, c + second.c, ldc * 4);
  if (M > 1 && N > 1) _tile_stored(3, c + second.c + BLOCK, ldc * 4);
}
#else
struct AmxTiles {
  explicit AmxTiles(long = BLOCK, long = BLOCK) {}
};
template <int M, int N>
void microkernel_amx(float*, long, const float*, const KSegment<bfloat16>*, long, const Strides&,
                     SecondBlock) {}
#endif

// C = start + A B; `start` is C itself, or one row that all begin with. `two`: there is a second
// block of rows.
inline void run_microkernel_amx(float* c, long ldc, const float* start,
                                const KSegment<bfloat16>* segments, long length,
                                const Strides& strides, SecondBlock second, bool two,
                                long columns) {
  const auto f = two ? (columns > BLOCK ? microkernel_amx<2, 2> : microkernel_amx<2, 1>)
                     : (columns > BLOCK ? microkernel_amx<1, 2> : microkernel_amx<1, 1>);
  f(c, ldc, start, segments, length, strides, second);
}

}  // namespace
