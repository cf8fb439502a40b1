// The three sides of <W, unfold(x) y^T>, without ever storing unfold(x): see jaxdae/native.py.
//
// Images are (batch, height, width, channels). The image side x and the grid side y are joined by
// the matrix W, (taps * image channels, grid channels), in jaxdae.convolution's words:
//
//     gather     y = unfold(x) W          scatter     x = fold(y W^T)
//     correlate  W = unfold(x)^T y
//
// A gather is a product of matrices of which the left one, the patches, is never made: it is read
// where its pixels lie, in a copy of the image with zeros around it (a window), in which the taps
// of a row are neighbours (a run). A scatter is one too, for each phase of the image (positions
// with the same remainder modulo the stride), which a part of the taps reach. A correlation takes
// some images at a time, and adds up their products. Where a kernel of 3 by 3 stands on every
// second pixel, fewer products do: see the pairs below.
//
// All products are of words of four bytes: a float, or a pair of bfloat16 that are summed over
// together, as the instructions for bfloat16 want them: two channels, or the same place in two
// images. So one code serves both types, and what differs is `multiply_add` and how words are put
// together; it is compiled for each by itself. A processor without such instructions multiplies
// floats, which bfloat16 becomes as it is read. All sums are float32, and their order depends on
// the shapes alone, not on how many threads there are.
//
// Dense layers are products of matrices at the end; Adam and normal numbers, which are none, come
// last.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__) && !defined(__clang__)
#define TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 14;  // 28 sums in 32 registers
#else
constexpr int LANES = 8, ROWS = 6;  // 12 sums in 16 registers of 8 lanes
#endif
constexpr int PANEL = 2 * LANES;  // columns of a product
constexpr int LINE = 64;          // bytes of a cache's line
constexpr int PARTS = 4;          // sums of a correlation that are added up at its end

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(2)));
typedef uint16_t Halves __attribute__((vector_size(4 * LANES), aligned(2)));
typedef uint16_t Narrow __attribute__((vector_size(2 * LANES), aligned(2)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES), aligned(2)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t bfloat16;
typedef ELEMENT Element;  // of the images, for which this is compiled: float or bfloat16
typedef uint32_t Words16 __attribute__((vector_size(64), aligned(2)));
typedef uint16_t Halves16 __attribute__((vector_size(32), aligned(2)));

long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

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
constexpr int TILE = 16;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

template <class T>
constexpr int PER_WORD = 4 / sizeof(T);

// Whether floats are multiplied: for bfloat16, where the processor has no products of it.
template <class T>
constexpr bool IN_FLOATS = sizeof(T) == 4;
#if !defined(__AVX512BF16__) && !defined(TILES)
template <>
constexpr bool IN_FLOATS<bfloat16> = true;
#endif

// What is multiplied.
template <class T>
using Multiplied = std::conditional_t<IN_FLOATS<T>, float, T>;

// Sums to what is written: to the nearest, ties to even.
void store(float* out, float x) { *out = x; }
void store(bfloat16* out, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *out = x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
Narrow narrowed(Floats x) {
#if defined(__AVX512BF16__)
  const auto rounded = _mm512_cvtneps_pbh((__m512)x);
  return (Narrow)rounded;
#else
  const Words bits = (Words)x, nan = (Words)(x != x);
  const Words rounded = ((bits + 0x7fff + (bits >> 16 & 1)) & ~nan) | (nan & 0x7fc00000);
  return __builtin_convertvector(rounded >> 16, Narrow);
#endif
}
#if defined(__AVX512BF16__)
// Those of the first vector, and then those of the second.
Words narrowed(Floats low, Floats high) {
  return (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}
#endif

// What a relu lets through, and gates: what is not at most 0, so that a NaN passes.
bool open(float gate) { return !(gate <= 0); }
bool open(bfloat16 gate) { return int16_t(gate) > 0 || gate > 0xff80; }
// Words of what is let through, and zeros.
inline Words passed(Words x, const float* gate) {
#if defined(__AVX512F__)
  const auto shut = _mm512_cmp_ps_mask(_mm512_loadu_ps(gate), __m512{}, _CMP_LE_OQ);
  return (Words)_mm512_mask_mov_epi32((__m512i)x, shut, __m512i{});
#else
  return x & ~(Words)(*(const Floats*)gate <= 0);
#endif
}
inline Words passed(Words x, Words gate) {  // of bfloat16
#if defined(__AVX512BW__)
  const __m512i g = (__m512i)gate;
  const auto below = _mm512_cmple_epi16_mask(g, __m512i{});
  const auto shut = _mm512_mask_cmple_epu16_mask(below, g, _mm512_set1_epi16(-0x80));
  return (Words)_mm512_mask_mov_epi16((__m512i)x, shut, __m512i{});
#else
  const Halves g = (Halves)gate;
  return x & (Words)(((Shorts)g > 0) | (Shorts)(g > 0xff80));
#endif
}
inline Words passed(Words x, const bfloat16* gate) { return passed(x, *(const Words*)gate); }

Floats widened(const float* x) { return *(const Floats*)x; }
Floats widened(const bfloat16* x) {
  return (Floats)(__builtin_convertvector(*(const Narrow*)x, Words) << 16);
}

// Sums, zeros where a gate is closed.
Floats gated(Floats x, const float* gate) { return (Floats)passed((Words)x, gate); }
Floats gated(Floats x, const bfloat16* gate) {
  return (Floats)((Words)x & ~(Words)(widened(gate) <= 0));
}
void store(float* out, Floats x) { *(Floats*)out = x; }
void store(bfloat16* out, Floats x) { *(Narrow*)out = narrowed(x); }

// Sums written, zeros where a gate is closed.
template <bool GATED, int N, class T>
inline void finish(T* out, const Floats (&sum)[N], const T* gate) {
#if defined(__AVX512BF16__)
  if constexpr (N == 2 && sizeof(T) == 2) {
    const Words rounded = narrowed(sum[0], sum[1]);
    *(Words*)out = GATED ? passed(rounded, gate) : rounded;
    return;
  }
#endif
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n)
    store(out + n * LANES, GATED ? gated(sum[n], gate + n * LANES) : sum[n]);
}

template <class T>
Floats multiply_add(Floats sum, Words a, Words b);
template <>
inline Floats multiply_add<float>(Floats sum, Words a, Words b) {
  return sum + (Floats)a * (Floats)b;
}
template <>
inline Floats multiply_add<bfloat16>(Floats sum, Words a, Words b) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum = multiply_add<float>(sum, a << 16, b << 16);
  return multiply_add<float>(sum, a & 0xffff0000u, b & 0xffff0000u);
#endif
}

// Memory of a thread that is kept between calls, by its use.
enum Use { MATRIX, LEFT, RIGHT, SUMS, RAW, TOTALS, COLUMNS, PLANES, USES };
template <class T>
T* memory(Use use, long count) {
  thread_local std::vector<char> kept[USES];
  const long size = count * sizeof(T) + 128;  // a vector may be read from its last element on
  if (long(kept[use].size()) < size) kept[use].resize(size);
  return (T*)(((uintptr_t)kept[use].data() + 63) & ~uintptr_t(63));
}

// A number of the thread that asks, the same in every call.
long own_number() {
  static std::atomic<long> given{0};
  thread_local const long number = given++;
  return number;
}

// f(0) to f(count - 1), shared with the threads of XLA's pool that have time. Each thread begins in
// a region of its own, the same from call to call, where its caches hold what it wrote before. What
// is not `worth` it is done before another thread has woken up.
void parallel(ffi::ThreadPool& pool, long count, const std::function<void(long)>& f,
              bool worth = true) {
  struct Job {
    long count, regions;
    std::unique_ptr<std::atomic<long>[]> next;
    std::atomic<long> done{0};
    const std::function<void(long)>* f;
    void work() {
      long finished = 0;
      for (long r = 0, own = own_number(); r < regions; ++r) {
        const long region = (own + r) % regions, end = count * (region + 1) / regions;
        for (long i; (i = next[region]++) < end; ++finished) (*f)(i);
      }
      done += finished;
    }
  };
  const long threads = std::max<long>(1, std::min<long>(pool.num_threads(), count));
  if (threads == 1 || !worth) {
    for (long i = 0; i < count; ++i) f(i);
    return;
  }
  auto job = std::make_shared<Job>();
  job->count = count, job->regions = threads, job->f = &f;
  job->next = std::make_unique<std::atomic<long>[]>(threads);
  for (long r = 0; r < threads; ++r) job->next[r] = count * r / threads;
  // One that comes too late finds nothing to do, and does not touch what is gone by then.
  for (long i = 1; i < threads; ++i) pool.Schedule([job] { job->work(); });
  job->work();
  // Where more threads want to run than there are processors, the last one must be let in.
  for (long turn = 0; job->done < count; ++turn)
    if (turn < 256)
      pause();
    else
      std::this_thread::yield();
}

struct Geometry {
  long batch, image[2], kernel[2], stride, low[2], grid[2], channels, outputs;
  bool turned;  // the matrix lies as (taps, outputs, channels), the last tap first
  long taps() const { return kernel[0] * kernel[1]; }
  // Where the matrix has the first tap, and its steps from a tap, a channel, an output to the next.
  long first() const { return turned ? (taps() - 1) * channels * outputs : 0; }
  long tap_step() const { return (turned ? -1 : 1) * channels * outputs; }
  long channel_step() const { return turned ? 1 : outputs; }
  long output_step() const { return turned ? channels : 1; }
  // Of images of one pixel the three sides are plain products, and positions far too few.
  bool dense() const {
    return taps() == 1 && !turned && image[0] * image[1] * grid[0] * grid[1] == 1 && low[0] == 0 &&
           low[1] == 0;
  }
};

// Positions that the same taps reach: (i, j) is pixel `step * (i, j) + first` of what is written.
// Of what is read, a run is pixels beside each other: `columns` of them, the first of them
// `source_step * (i, j) + (down, right)`, and their taps.
struct Run {
  long down, right, columns, tap, tap_step;
};
struct Phase {
  long first[2], step, size[2], source_step;
  std::vector<Run> runs;
};

Phase gathered(const Geometry& g) {
  Phase phase{{0, 0}, 1, {g.grid[0], g.grid[1]}, g.stride, {}};
  for (long i = 0; i < g.kernel[0]; ++i)
    phase.runs.push_back({i - g.low[0], -g.low[1], g.kernel[1], i * g.kernel[1], 1});
  return phase;
}

std::vector<Phase> scattered(const Geometry& g) {
  const long s = g.stride;
  std::vector<Phase> phases;
  for (long row = 0; row < std::min(s, g.image[0]); ++row)
    for (long column = 0; column < std::min(s, g.image[1]); ++column) {
      const long rows = (g.image[0] - row + s - 1) / s,
                 columns = (g.image[1] - column + s - 1) / s;
      Phase phase{{row, column}, s, {rows, columns}, 1, {}};
      // The taps that reach it differ by the stride; the last of them takes the leftmost pixel.
      const long i0 = ((row + g.low[0]) % s + s) % s, j0 = ((column + g.low[1]) % s + s) % s;
      const long reach = j0 < g.kernel[1] ? (g.kernel[1] - 1 - j0) / s + 1 : 0;
      const long last = j0 + (reach - 1) * s;
      for (long i = i0; i < g.kernel[0] && reach; i += s)
        phase.runs.push_back({(row + g.low[0] - i) / s, (column + g.low[1] - last) / s, reach,
                              i * g.kernel[1] + last, -s});
      phases.push_back(phase);
    }
  return phases;
}

// Copies elements where their gate is open, or all if there is none.
template <class T>
inline void copy(T* out, const T* x, const T* gate, long count) {
  long c = 0;
  constexpr long N = 4 * LANES / sizeof(T);
  if (!gate) {
    std::memcpy(out, x, count * sizeof(T));
  } else {
    for (; c + N <= count; c += N)
      *(Words*)(out + c) = passed(*(const Words*)(x + c), gate + c);
    for (; c < count; ++c) out[c] = open(gate[c]) ? x[c] : T(0);
  }
}

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

// A term of a sum of products: `count` words of each row of a, and as many rows of b.
template <class T>
struct Term {
  const T* a;
  const uint32_t* b;
  long count;
};

// Where the words of a term are: a[m, k] at a + m * row + k * step, b[k, n] at b + k * b_step + n;
// the rows of the sums; and where in each term a and b begin.
struct Strides {
  long row, step, b_step, sums, a = 0, b = 0;
};
// Of tiles, two blocks of rows are taken together: where the second is of each a, if there is one.
struct Second {
  long a, sums;
};

// What is loaded once, for GCC would rather read it again for each of a few rows.
inline Words in_register(Words x) {
#if defined(__AVX2__)
  asm("" : "+v"(x));
#endif
  return x;
}

// sum (M, N * LANES) += a (M, count) b (count, N * LANES) of each term.
template <class T, int M, int N>
inline void add_products(Floats (&sum)[M][N], const Term<T>* terms, long length,
                         const Strides& strides) {
  const long row = strides.row, step = strides.step, b_step = strides.b_step;
  for (const Term<T>* term = terms; term < terms + length; ++term) {
    const T* a = term->a + strides.a;
    const uint32_t* b = term->b + strides.b;
    for (long k = 0; k < term->count; ++k, a += step, b += b_step) {
      Words right[N];
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) right[n] = in_register(*(const Words*)(b + n * LANES));
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        uint32_t word;
        std::memcpy(&word, a + m * row, 4);
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n)
          sum[m][n] = multiply_add<T>(sum[m][n], Words{} + word, right[n]);
      }
    }
  }
}

// sums = start + products. `start` is the sums themselves, or a row that all begin with. A gate
// lies as the sums do, if there is one.
template <class T, class Out, int M, int N>
void multiply(Out* sums, const float* start, const Term<T>* terms, long length,
              const Strides& strides, const Out* gate) {
  const long begin = (const void*)start == sums ? strides.sums : 0;
  Floats sum[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[m][n] = *(const Floats*)(start + m * begin + n * LANES);
  add_products(sum, terms, length, strides);
  if (gate)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
      finish<true>(sums + m * strides.sums, sum[m], gate + m * strides.sums);
  else
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish<false>(sums + m * strides.sums, sum[m], gate);
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
#if defined(__AVX512F__) && !defined(__clang__)
// Which words of two rows that are 1, 2, 4 or 8 apart change places. (Written as constants where
// they are used, GCC puts them together word by word, each time.)
const struct Turns {
  Words low[4], high[4];
  Turns() {
    for (int turn = 0; turn < 4; ++turn)
      for (int lane = 0, s = 1 << turn; lane < TILE; ++lane) {
        low[turn][lane] = lane & s ? TILE + lane - s : lane;
        high[turn][lane] = lane & s ? TILE + lane : lane + s;
      }
  }
} turns;
#endif

// 16 rows of 16 words, row(i), become columns, in rows that are `step` apart.
template <class Row>
inline void transpose(uint32_t* out, long step, const Row& row) {
#if defined(__AVX512F__) && !defined(__clang__)
  Words v[TILE];
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) v[i] = row(i);
#pragma GCC unroll 4
  for (int turn = 0; turn < 4; ++turn) {
    const Words low = turns.low[turn], high = turns.high[turn];
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i)
      if (const int s = 1 << turn; !(i & s)) {
        const Words a = v[i], b = v[i + s];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + s] = __builtin_shuffle(a, b, high);
      }
  }
#pragma GCC unroll 16
  for (int i = 0; i < TILE; ++i) *(Words*)(out + i * step) = v[i];
#else
  for (int i = 0; i < TILE; ++i) {
    const auto words = row(i);
    for (int lane = 0; lane < TILE; ++lane) out[lane * step + i] = words[lane];
  }
#endif
}

void multiply_tiles(float* sums, const float* start, const Term<bfloat16>* terms, long length,
                    const Strides& strides, Second second, bool two, long columns) {
  const auto f = two ? (columns > TILE ? multiply_tiles<2, 2> : multiply_tiles<2, 1>)
                     : (columns > TILE ? multiply_tiles<1, 2> : multiply_tiles<1, 1>);
  f(sums, start, terms, length, strides, second);
}

template <class T, class Out>
using Multiply = void (*)(Out*, const float*, const Term<T>*, long, const Strides&, const Out*);

template <class T, class Out, int... M>
Multiply<T, Out> choose(long rows, long columns, std::integer_sequence<int, M...>) {
  static constexpr Multiply<T, Out> narrow[] = {multiply<T, Out, M + 1, 1>...},
                                    wide[] = {multiply<T, Out, M + 1, 2>...};
  return (columns > LANES ? wide : narrow)[rows - 1];
}
// For so many rows, at most ROWS, and so many columns of a panel.
template <class T, class Out = float>
Multiply<T, Out> choose(long rows, long columns) {
  return choose<T, Out>(rows, columns, std::make_integer_sequence<int, ROWS>());
}

// f(first, size) for the parts of a whole, about equal, none above `most`.
template <class F>
inline void by_parts(long count, const F& f, long most = ROWS) {
  const long parts = (count + most - 1) / most;
  for (long part = 0, first = 0, until; part < parts; ++part, first = until)
    until = count * (part + 1) / parts, f(first, until - first);
}
// The largest size of such parts.
long share(long count, long most = ROWS) {
  const long parts = std::max(1L, (count + most - 1) / most);
  return (count + parts - 1) / parts;
}

template <class T>
long words(const Run& run, long channels) {
  const long count = (run.columns * channels + PER_WORD<T> - 1) / PER_WORD<T>;
  return tiled<T>() ? round_up(count, TILE) : count;
}
template <class T>
long words(const Phase& phase, long channels) {
  long sum = 0;
  for (const Run& run : phase.runs) sum += words<T>(run, channels);
  return sum;
}

// Sums written, zeros where a gate is closed.
template <class T>
inline void write(T* out, const float* sums, const T* gate, long count) {
  long n = 0;
  for (; n + LANES <= count; n += LANES)
    store(out + n, gate ? gated(*(const Floats*)(sums + n), gate + n)
                        : *(const Floats*)(sums + n));
  for (; n < count; ++n) store(out + n, gate && !open(gate[n]) ? 0.0f : sums[n]);
}

// Rows of bfloat16 as words of elements that are `step` apart.
inline Words16 paired(const uint16_t* x, long step) {
  return __builtin_convertvector(*(const Halves16*)x, Words16) |
         __builtin_convertvector(*(const Halves16*)(x + step), Words16) << 16;
}
#if defined(__AVX512BW__)
// Words of the first halves of both, and of the second.
inline void interleave(Words (&out)[2], Words a, Words b) {
  const __m512i low = _mm512_set_epi16(  //
      47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
      39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(TILE));
  out[0] = (Words)_mm512_permutex2var_epi16((__m512i)a, low, (__m512i)b);
  out[1] = (Words)_mm512_permutex2var_epi16((__m512i)a, high, (__m512i)b);
}
#endif
inline void pair_up(uint32_t* out, const uint16_t* x, long count, long step) {
  long n = 0;
#if defined(__AVX512BW__)
  for (; n + 2 * TILE <= count; n += 2 * TILE) {
    Words words[2];
    interleave(words, *(const Words*)(x + n), *(const Words*)(x + n + step));
    *(Words*)(out + n) = words[0], *(Words*)(out + n + TILE) = words[1];
  }
#endif
  for (; n + TILE <= count; n += TILE) *(Words16*)(out + n) = paired(x + n, step);
  for (; n < count; ++n) out[n] = x[n] | uint32_t(x[n + step]) << 16;
}

// Rows of floats, rounded, as words of both; at most a panel.
inline void pair_rounded(uint32_t* out, const float* a, const float* b, long count) {
#if defined(__AVX512BF16__)
  if (count == PANEL) {
    const auto row = [](const float* x) {
      return narrowed(*(const Floats*)x, *(const Floats*)(x + LANES));
    };
    Words words[2];
    interleave(words, row(a), row(b));
    *(Words*)out = words[0], *(Words*)(out + LANES) = words[1];
    return;
  }
#endif
  bfloat16 rounded[2][PANEL];
  write<bfloat16>(rounded[0], a, nullptr, count);
  write<bfloat16>(rounded[1], b, nullptr, count);
  pair_up(out, rounded[0], count, PANEL);
}

// What is multiplied by: element (k, n) of a tap is
// `matrix[tap * tap_step + k * row + n * column]`.
template <class T>
struct Matrix {
  const float* matrix;
  long tap_step, row, column, inputs, outputs;

  // Whether it is read where it lies: of so few positions, packing it takes longer than it saves.
  bool in_place(long positions) const {
    return sizeof(T) == 4 && column == 1 && outputs % LANES == 0 && positions <= 64;
  }
  const float* rows_of(const Run& run, long pixel) const {
    return matrix + (run.tap + pixel * run.tap_step) * tap_step;
  }

  // For one phase, from column `first` on: (words, PANEL).
  void pack(uint32_t* out, const Phase& phase, long first) const {
    constexpr int PER = PER_WORD<T>;
    const long columns = std::min<long>(PANEL, outputs - first);
    std::memset(out, 0, words<T>(phase, inputs) * PANEL * 4);
    for (const Run& run : phase.runs) {
      for (long pixel = 0; pixel < run.columns; ++pixel) {
        const float* from = rows_of(run, pixel) + first * column;
        for (long c = 0; c < inputs;) {
          const long k = pixel * inputs + c, wide = PER * TILE;
          uint32_t* to = out + k / PER * PANEL;
          if (row == 1 && k % PER == 0 && c + wide <= inputs) {
            // What lies along a column: 16 columns at a time are turned.
            for (long n = 0; n < columns; n += TILE) {
              T lines[TILE][2 * TILE] = {};
              for (long i = 0; i < std::min<long>(TILE, columns - n); ++i)
                write<T>(lines[i], from + c + (n + i) * column, nullptr, wide);
              transpose(to + n, PANEL, [&](int i) { return *(const Words16*)lines[i]; });
            }
            c += wide;
          } else if (column == 1 && k % PER == 0 && c + PER <= inputs) {
            if (PER == 1)
              std::memcpy(to, from + c * row, columns * 4);
            else
              pair_rounded(to, from + c * row, from + (c + 1) * row, columns);
            c += PER;
          } else {
            for (long n = 0; n < columns; ++n)
              store((T*)to + n * PER + k % PER, from[c * row + n * column]);
            ++c;
          }
        }
      }
      out += words<T>(run, inputs) * PANEL;
    }
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

// A gather or a scatter: what is written from what is read, a few rows of positions at a time.
template <class T>
void apply(ffi::ThreadPool& pool, const std::vector<Phase>& phases, const Source<T>& source,
           const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
           long height, long width) {
  const long outputs = matrix.outputs, panels = (outputs + PANEL - 1) / PANEL;
  const bool in_place = matrix.in_place(batch * phases[0].size[0] * phases[0].size[1]);
  std::vector<long> depths, offsets;
  long total = 0;
  for (const Phase& phase : phases) {
    depths.push_back(words<T>(phase, source.channels));
    offsets.push_back(total);
    total += depths.back() * PANEL * panels;
  }
  float* start = memory<float>(MATRIX, panels * PANEL + total);  // the sums begin with the bias
  uint32_t* packed = (uint32_t*)start + panels * PANEL;
  for (long n = 0; n < panels * PANEL; ++n) start[n] = bias && n < outputs ? bias[n] : 0;
  const long products = batch * phases[0].size[0] * phases[0].size[1] * total * PER_WORD<T>;
  const bool worth = products + 32 * batch * height * width * outputs > 6 << 20;
  parallel(
      pool, in_place ? 0 : phases.size() * panels,
      [&](long item) {
        const long p = item / panels, first = item % panels * PANEL;
        matrix.pack(packed + offsets[p] + first * depths[p], phases[p], first);
      },
      worth);
  const long most = tiled<T>() ? TILE : ROWS;  // positions at a time
  long widest = 1;
  for (const Phase& phase : phases) widest = std::max(widest, share(phase.size[1], most));
  const auto some = [&](const Window<T>& window, long image, long top, long bottom) {
    float* room = memory<float>(SUMS, 2 * TILE * PANEL);
    std::optional<Tiles> tiles;
    if (tiled<T>()) tiles.emplace(widest);
    std::vector<Term<T>> terms;
    for (size_t p = 0; p < phases.size(); ++p) {
      const Phase& phase = phases[p];
      for (long panel = 0; panel < panels; ++panel) {
        const long first = panel * PANEL, columns = std::min<long>(PANEL, outputs - first);
        const long until = std::min(bottom, phase.size[0]);
        const long by = tiled<T>() ? 2 : 1;  // rows of positions
        for (long i = top; i < until; i += by) {
          const auto part = [&](long j, long count) {
            const uint32_t* b = packed + offsets[p] + panel * depths[p] * PANEL;
            terms.clear();
            for (const Run& run : phase.runs) {
              const long deep = words<T>(run, source.channels);
              if (!in_place) terms.push_back({window.at(run, i, j), b, deep});
              for (long pixel = 0; pixel < run.columns && in_place; ++pixel)
                terms.push_back({window.at(run, i, j) + pixel * source.channels,
                                 (const uint32_t*)matrix.rows_of(run, pixel) + first,
                                 source.channels});
              b += deep * PANEL;
            }
            const long apart = phase.step * outputs, down = phase.step * width * outputs;
            const long to = ((image * height + i * phase.step + phase.first[0]) * width +
                             j * phase.step + phase.first[1]) *
                                outputs +
                            first;
            const long row = window.step * source.channels;
            const long b_step = in_place ? matrix.row : PANEL;
            const Strides strides{row, PER_WORD<T>, b_step, PANEL};
            if (tiled<T>()) {
              const Second second{row * window.width, TILE * PANEL};
              multiply_tiles(room, start + first, (const Term<bfloat16>*)terms.data(),
                             terms.size(), strides, second, i + 1 < until, columns);
            } else if (columns % LANES == 0) {
              // Whole vectors are written where they belong.
              choose<T, T>(count, columns)(out + to, start + first, terms.data(), terms.size(),
                                           {row, PER_WORD<T>, b_step, apart},
                                           gate ? gate + to : nullptr);
              return;
            } else {
              choose<T>(count, columns)(room, start + first, terms.data(), terms.size(), strides,
                                        nullptr);
            }
            for (long line = 0; line < std::min(by, until - i); ++line)
              for (long m = 0; m < count; ++m) {
                const long at = to + line * down + m * apart;
                write(out + at, room + (line * TILE + m) * PANEL, gate ? gate + at : nullptr,
                      columns);
              }
          };
          by_parts(phase.size[1], part, most);
        }
      }
    }
  };
  by_window(pool, phases, source, batch, worth, some);
}

// The same for patches of so few numbers that all they are multiplied by stays in registers: 3 by
// 3, of one channel.
constexpr int SIDE = 3, PATCH = SIDE * SIDE;
bool single_channel(const Geometry& g) {
  return g.kernel[0] == SIDE && g.kernel[1] == SIDE && g.channels == 1 && g.outputs % PANEL == 0;
}
template <class T>
constexpr int SIDE_WORDS = (SIDE + PER_WORD<T> - 1) / PER_WORD<T>;

// M positions beside each other, from where on their rows of pixels are read.
template <class T, int M, int N>
void multiply_patches(T* out, const float* start, const T* const (&rows)[SIDE], long step,
                      const uint32_t* packed, long outputs, const T* gate) {
  constexpr int WORDS = SIDE_WORDS<T>;
  Words right[SIDE * WORDS][N];
  Floats sum[M][N];
#pragma GCC unroll 16
  for (int k = 0; k < SIDE * WORDS; ++k)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n)
      right[k][n] = in_register(*(const Words*)(packed + k * PANEL + n * LANES));
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[m][n] = *(const Floats*)(start + n * LANES);
#pragma GCC unroll 16
  for (int k = 0; k < SIDE * WORDS; ++k)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      uint32_t word;
      std::memcpy(&word, rows[k / WORDS] + m * step + k % WORDS * PER_WORD<T>, 4);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n)
        sum[m][n] = multiply_add<T>(sum[m][n], Words{} + word, right[k][n]);
    }
  if (gate)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish<true>(out + m * outputs, sum[m], gate + m * outputs);
  else
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish<false>(out + m * outputs, sum[m], gate);
}
template <class T, int N, int... M>
auto choose_patches(long count, std::integer_sequence<int, M...>) {
  static constexpr decltype(&multiply_patches<T, 1, N>) all[] = {multiply_patches<T, M + 1, N>...};
  return all[count - 1];
}
template <class T>
void apply_patches(ffi::ThreadPool& pool, const std::vector<Phase>& phases, const Source<T>& source,
                   const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
                   long height, long width) {
  constexpr int DEPTH = SIDE * SIDE_WORDS<T>, N = LANES / 8;
  constexpr int MOST = (2 * LANES - 4 - DEPTH * N) / N;  // positions: registers suffice
  const long outputs = matrix.outputs;
  float* start = memory<float>(MATRIX, outputs * (1 + DEPTH));
  uint32_t* packed = (uint32_t*)start + outputs;
  for (long n = 0; n < outputs; ++n) start[n] = bias ? bias[n] : 0;
  for (long n = 0; n < outputs; n += PANEL) matrix.pack(packed + n * DEPTH, phases[0], n);
  const auto some = [&](const Window<T>& window, long image, long top, long bottom) {
    const auto part = [&](long i, long j, long count) {
      const T* rows[SIDE];
      for (int row = 0; row < SIDE; ++row) rows[row] = window.at(phases[0].runs[row], i, j);
      const auto f = choose_patches<T, N>(count, std::make_integer_sequence<int, MOST>());
      const long to = ((image * height + i) * width + j) * outputs;
      for (long n = 0; n < outputs; n += N * LANES)
        f(out + to + n, start + n, rows, window.step,
          packed + n / PANEL * PANEL * DEPTH + n % PANEL, outputs, gate ? gate + to + n : nullptr);
    };
    for (long i = top; i < bottom; ++i)
      by_parts(width, [&](long j, long count) { part(i, j, count); }, MOST);
  };
  by_window(pool, phases, source, batch, batch * height * width * outputs > 1 << 17, some);
}

// Lane by lane, the sums of as many vectors: lane i is that of vector i.
inline Floats sums_of_lanes(Floats* v) {
#if defined(__AVX512F__) && !defined(__clang__)
#pragma GCC unroll 4
  for (int turn = 3; turn >= 0; --turn)
#pragma GCC unroll 8
    for (int i = 0; i < 1 << turn; ++i) {
      const Floats a = v[i], b = v[i + (1 << turn)];
      v[i] = __builtin_shuffle(a, b, turns.low[turn]) + __builtin_shuffle(a, b, turns.high[turn]);
    }
  return v[0];
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const auto add = [](__m256 a, __m256 b) { return _mm256_hadd_ps(a, b); };
  const auto four = [&](const Floats* v) {
    return add(add((__m256)v[0], (__m256)v[1]), add((__m256)v[2], (__m256)v[3]));
  };
  const __m256 low = four(v), high = four(v + 4);
  return (Floats)(_mm256_permute2f128_ps(low, high, 0x20) +
                  _mm256_permute2f128_ps(low, high, 0x31));
#else
  Floats sums{};
  for (int i = 0; i < LANES; ++i)
    for (int lane = 0; lane < LANES; ++lane) sums[i] += v[i][lane];
  return sums;
#endif
}

// The same for few outputs, too few to be the lanes of vectors: the inputs are. Each position has a
// vector of sums, which are added up at its end.
template <class T>
void apply_few(ffi::ThreadPool& pool, const std::vector<Phase>& phases, const Source<T>& source,
               const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
               long height, long width) {
  constexpr long WIDE = LANES * PER_WORD<T>;
  const long outputs = matrix.outputs, step = phases[0].step;
  const auto vectors = [&](const Run& run) {
    return (run.columns * source.channels + WIDE - 1) / WIDE;
  };
  std::vector<long> depths;  // vectors of a phase
  for (const Phase& phase : phases) {
    depths.push_back(0);
    for (const Run& run : phase.runs) depths.back() += vectors(run);
  }
  const long total = std::accumulate(depths.begin(), depths.end(), 0L) * outputs * WIDE;
  T* packed = memory<T>(MATRIX, total);
  std::memset(packed, 0, total * sizeof(T));
  T* to = packed;
  for (const Phase& phase : phases)
    for (long n = 0; n < outputs; ++n)
      for (const Run& run : phase.runs) {
        for (long k = 0; k < run.columns * source.channels; ++k)
          store(to + k, matrix.matrix[(run.tap + k / source.channels * run.tap_step) *
                                          matrix.tap_step +
                                      k % source.channels * matrix.row + n * matrix.column]);
        to += vectors(run) * WIDE;
      }
  const auto some = [&](const Window<T>& window, long image, long top, long bottom) {
    float* sums = memory<float>(SUMS, (bottom - top) * step * width * outputs + LANES);
    const T* weights = packed;
    for (size_t p = 0; p < phases.size(); ++p) {
      const Phase& phase = phases[p];
      for (long n = 0; n < outputs; ++n, weights += depths[p] * WIDE)
        for (long i = top; i < std::min(bottom, phase.size[0]); ++i) {
          float* line = sums + ((i - top) * step + phase.first[0]) * width * outputs + n;
          for (long j = 0; j < phase.size[1]; j += LANES) {
            Floats sum[LANES] = {};
            const long row = window.step * source.channels;
#pragma GCC unroll 4
            for (int half = 0; half < LANES; half += LANES / 2) {
              const T* w = weights;
              for (const Run& run : phase.runs) {
                const T* x = window.at(run, i, j) + half * row;
                for (long k = vectors(run); k; --k, x += WIDE, w += WIDE)
#pragma GCC unroll 16
                  for (int m = 0; m < LANES / 2; ++m)
                    sum[half + m] = multiply_add<T>(sum[half + m], *(const Words*)(x + m * row),
                                                    *(const Words*)w);
              }
            }
            const Floats together = sums_of_lanes(sum) + (bias ? bias[n] : 0.0f);
            float* at = line + (j * step + phase.first[1]) * outputs;
            if (step * outputs == 1)
              *(Floats*)at = together;
            else
              for (long m = 0; m < std::min<long>(LANES, phase.size[1] - j); ++m)
                at[m * step * outputs] = together[m];
          }
        }
    }
    const long first = top * step, until = std::min(height, bottom * step);
    const long at = (image * height + first) * width * outputs;
    write(out + at, sums, gate ? gate + at : nullptr, (until - first) * width * outputs);
  };
  const bool worth = batch * phases[0].size[0] * phases[0].size[1] * total > 6 << 20;
  by_window(pool, phases, source, batch, worth, some);
}

// The sums of M positions beside each other, for runs of TAPS columns and whole vectors of
// channels: what is read serves all taps of a run. Of the columns, the first or the last may not be
// there.
constexpr int TAPS = 3, MOST_RUNS = 8;
template <class T, int M, bool GATED>
inline Floats sums_along(const T* const* rows, const T* const* gates, const T* weights, long runs,
                         long at, bool left, bool right, long channels) {
  constexpr long WIDE = LANES * PER_WORD<T>;
  Floats sum[LANES] = {};
  for (long run = 0; run < runs; ++run, weights += TAPS * channels)
    for (long c = 0; c < channels; c += WIDE) {
      Words w[TAPS];
#pragma GCC unroll 3
      for (int tap = 0; tap < TAPS; ++tap) w[tap] = *(const Words*)(weights + tap * channels + c);
      const T *x = rows[run] + at * channels + c, *gate = gates[run] + at * channels + c;
#pragma GCC unroll 32
      for (int p = 0; p < M + TAPS - 1; ++p) {
        if ((p > 0 || left) && (p < M + TAPS - 2 || right)) {
          Words numbers = *(const Words*)x;
          if (GATED) numbers = passed(numbers, gate);
#pragma GCC unroll 3
          for (int tap = 0; tap < TAPS; ++tap)
            if (p >= tap && p - tap < M)
              sum[p - tap] = multiply_add<T>(sum[p - tap], numbers, w[tap]);
        }
        x += channels, gate += channels;
        asm("" : "+r"(x), "+r"(gate));  // else GCC keeps all places, for which it has no registers
      }
    }
  return sums_of_lanes(sum);
}
constexpr int SPAN = LANES - LANES / 8;  // positions at a time, of which there are 2 or 4 in 28

// Whether this is so.
template <class T>
bool along(const std::vector<Phase>& phases, const Source<T>& source) {
  const Phase& phase = phases[0];
  if (phases.size() > 1 || phase.step > 1 || phase.source_step > 1 || phase.size[1] < SPAN ||
      phase.runs.size() > MOST_RUNS)
    return false;
  for (const Run& run : phase.runs)
    if (run.columns != TAPS || run.right < -1 || phase.size[1] + run.right >= source.width)
      return false;
  return source.channels % (LANES * PER_WORD<T>) == 0;
}

// So few outputs of stride 1.
template <class T>
void apply_along(ffi::ThreadPool& pool, const Phase& phase, const Source<T>& source,
                 const Matrix<T>& matrix, const float* bias, const T* gate, T* out, long batch,
                 long height, long width) {
  const long outputs = matrix.outputs, channels = source.channels, runs = phase.runs.size();
  const long size = runs * TAPS * channels, line = source.width * channels;
  T *weights = memory<T>(MATRIX, outputs * size), *to = weights;
  for (long n = 0; n < outputs; ++n)
    for (const Run& run : phase.runs)
      for (long k = 0; k < TAPS * channels; ++k, ++to)
        store(to, matrix.rows_of(run, k / channels)[k % channels * matrix.row + n * matrix.column]);
  // Gates of bfloat16 cost more than to keep what passes them, for all runs that see it.
  const bool keeps = source.gate && sizeof(T) == 2;
  const auto f = source.gate && !keeps ? sums_along<T, SPAN, true> : sums_along<T, SPAN, false>;
  const long taken = std::clamp<long>(131072 / sizeof(T) / line, 1, height);
  const long parts = (height + taken - 1) / taken;
  const auto some = [&](long item) {
    const long image = item / parts, top = item % parts * taken;
    float* sums = memory<float>(SUMS, width * outputs + LANES);
    T* kept = memory<T>(LEFT, keeps ? MOST_RUNS * line : 0);
    long held[MOST_RUNS];  // which rows those are
    std::fill_n(held, MOST_RUNS, -1);
    for (long i = top; i < std::min(height, top + taken); ++i) {
      const T *rows[MOST_RUNS], *gates[MOST_RUNS];
      long first = runs, count = 0;  // of the runs whose rows are in the image
      for (long run = 0; run < runs; ++run)
        if (const long row = i + phase.runs[run].down; row >= 0 && row < source.height) {
          const long from = (image * source.height + row) * line;
          rows[count] = source.x + from;
          gates[count] = (source.gate ? source.gate : source.x) + from;
          if (keeps) {
            T* here = kept + row % MOST_RUNS * line;
            if (std::exchange(held[row % MOST_RUNS], row) != row)
              copy(here, rows[count], gates[count], line);
            rows[count] = here;
          }
          ++count;
          first = std::min(first, run);
        }
      for (long n = 0; n < outputs; ++n)
        for (long next = 0, j; next < width; next += SPAN) {
          j = std::min(next, width - SPAN);  // the last ones once more, if need be
          const long at = j + phase.runs[0].right;
          const Floats together =
              f(rows, gates, weights + n * size + first * TAPS * channels, count, at, at >= 0,
                at + SPAN + TAPS - 2 < source.width, channels) +
              (bias ? bias[n] : 0.0f);
          if (outputs == 1)
            *(Floats*)(sums + j) = together;
          else
            for (long m = 0; m < SPAN; ++m) sums[(j + m) * outputs + n] = together[m];
        }
      const long at = (image * height + i) * width * outputs;
      write(out + at, sums, gate ? gate + at : nullptr, width * outputs);
    }
  };
  parallel(pool, batch * parts, some, batch * height * width * outputs * size > 6 << 20);
}

template <class T>
bool few(long outputs) {
  return outputs <= LANES / 4 && !tiled<T>();
}

// A scatter to few channels on tiles, where the stride is 1: what a row of the grid gives, by every
// row of taps, is a convolution along it; the image is sums of those.
void scatter_rows(ffi::ThreadPool& pool, const Geometry& g, const Source<bfloat16>& grid,
                  const float* matrix, const float* bias, const bfloat16* gate, bfloat16* out) {
  const long deep = round_up(g.kernel[1] * g.outputs, 2 * TILE) / 2;  // words of a run of taps
  const long wide = round_up(g.kernel[0] * g.channels, 4);            // numbers for a pixel
  float* start = memory<float>(MATRIX, TILE + deep * wide);
  uint32_t* weights = (uint32_t*)start + TILE;
  std::memset(start, 0, (TILE + deep * wide) * sizeof(float));
  for (long a = 0; a < g.kernel[0]; ++a)
    for (long b = 0; b < g.kernel[1]; ++b)
      for (long c = 0; c < g.channels; ++c)
        for (long o = 0; o < g.outputs; ++o) {
          const long k = (g.kernel[1] - 1 - b) * g.outputs + o;  // the last tap is leftmost
          store((bfloat16*)(weights + k / 2 * wide + a * g.channels + c) + k % 2,
                matrix[g.first() + (a * g.kernel[1] + b) * g.tap_step() + c * g.channel_step() +
                       o * g.output_step()]);
        }
  const Window<bfloat16> whole(grid, 1, g.low[1] - g.kernel[1] + 1, g.image[1] + g.kernel[1] - 1,
                               0, 0);
  // So many rows of the grid that they stay in the nearest cache.
  const long taken = std::max(2L, 8192 / (whole.width * g.outputs) / 2 * 2);
  const long tile = share(g.image[1], TILE), line = round_up(g.image[1], tile) * wide;
  parallel(pool, g.batch, [&](long image) {
    Window<bfloat16> window = whole;
    float* sums = memory<float>(SUMS, (g.grid[0] + 2) * line);
    float* together = memory<float>(COLUMNS, line + g.image[1] * g.channels + LANES);
    float* row = together + line + LANES;
    const Tiles tiles(tile, wide);
    for (long top = 0; top < g.grid[0]; top += taken) {
      const long count = std::min(taken, g.grid[0] - top);
      window.read(memory<bfloat16>(LEFT, window.size(taken)), image, top, count);
      for (long i = 0; i < count; i += 2)
        for (long v = 0; v < g.image[1]; v += tile) {
          const Term<bfloat16> term{window.pixels + (i * window.width + v) * g.outputs, weights,
                                    deep};
          multiply_tiles(sums + (top + i) * line + v * wide, start, &term, 1,
                         {g.outputs, 2, wide, wide}, {window.width * g.outputs, line},
                         i + 1 < count, TILE);
        }
    }
    for (long u = 0; u < g.image[0]; ++u) {
      std::memset(together, 0, line * sizeof(float));
      for (long a = 0; a < g.kernel[0]; ++a)
        if (const long i = u + g.low[0] - a; i >= 0 && i < g.grid[0]) {
          const float* from = sums + i * line + a * g.channels;
          for (long n = 0; n < line; n += LANES)
            *(Floats*)(together + n) += *(const Floats*)(from + n);
        }
      for (long v = 0; v < g.image[1]; ++v)
        for (long c = 0; c < g.channels; ++c)
          row[v * g.channels + c] = together[v * wide + c] + (bias ? bias[c] : 0);
      const long to = (image * g.image[0] + u) * g.image[1] * g.channels;
      write(out + to, row, gate ? gate + to : nullptr, g.image[1] * g.channels);
    }
  });
}

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

// The same on tiles. What a product sums over must be neighbours there, in pairs; these are the
// positions. So an image becomes planes, one for each channel and each remainder of a pixel's place
// modulo the stride, in which a tap is only a shift. The rows of a plane are longer than those of
// the grid, by what the taps reach; in between, and between images, the grid counts as zero.
void correlate_tiles(ffi::ThreadPool& pool, const Geometry& g, const Source<bfloat16>& image,
                     const Source<bfloat16>& grid, float* out) {
  const long s = g.stride;
  struct Tap {
    long plane, shift;
  };
  std::vector<Tap> places[2];  // of the taps of an axis
  long least[2], reach[2];
  for (int axis = 0; axis < 2; ++axis) {
    for (long tap = 0; tap < g.kernel[axis]; ++tap) {
      const long at = tap - g.low[axis], plane = (at % s + s) % s;
      places[axis].push_back({plane, (at - plane) / s});
    }
    least[axis] = (-g.low[axis] - places[axis][0].plane) / s;
    reach[axis] = places[axis].back().shift - least[axis];
  }
  const long pitch = round_up(g.grid[1] + reach[1], 2);
  const long channels = round_up(g.channels, TILE), outputs = round_up(g.outputs, TILE);
  const long filled = g.taps() * g.channels;
  const bool together = filled <= PANEL;  // all numbers of a patch are rows of one product
  // A chunk: rows of one image, or several whole ones, so that the sums pay.
  const long taken =
      std::clamp(131072 / (s * s * channels * pitch) - reach[0], 1L, g.grid[0]);
  const long several =
      taken < g.grid[0] ? 1 : std::clamp(256 / ((taken + reach[0]) * pitch), 1L, g.batch);
  const long chunks = (g.grid[0] + taken - 1) / taken;
  const long all = (g.batch + several - 1) / several * chunks;
  const long parts = std::min<long>(PARTS, all);
  const long most = round_up(several * (taken + reach[0]) * pitch, 2 * TILE);  // positions
  const long length = most + round_up(reach[0] * pitch + reach[1], 2 * TILE);  // of a plane
  const Window<bfloat16> whole(image, s, s * least[1], s * pitch, s * least[0],
                               s * (least[0] + reach[0]) + s - 1);
  const long one = whole.size(taken);
  const long panels = (outputs + PANEL - 1) / PANEL, across = (channels + PANEL - 1) / PANEL;
  const long size = (together ? 1 : g.taps() * across) * panels * PANEL * PANEL;
  float* totals = memory<float>(TOTALS, parts * size);
  parallel(pool, parts, [&](long part) {
    float* sums = totals + part * size;
    std::memset(sums, 0, size * sizeof(float));
    Window<bfloat16> window = whole;
    bfloat16* pixels = memory<bfloat16>(RAW, several * one + (pitch + 1) * g.outputs);
    bfloat16* row = pixels + several * one;
    bfloat16* planes = memory<bfloat16>(PLANES, channels * length);
    bfloat16* patches = memory<bfloat16>(LEFT, together ? PANEL * most : 0);
    uint32_t* right = memory<uint32_t>(RIGHT, most / 2 * panels * PANEL);
    std::memset(row + g.grid[1] * g.outputs, 0,
                (pitch + 1 - g.grid[1]) * g.outputs * sizeof(bfloat16));
    std::optional<Tiles> shape;
    shape.emplace();
    std::vector<long> places_of_words;  // in the pixels
    for (long chunk = all * part / parts; chunk < all * (part + 1) / parts; ++chunk) {
      const long first = chunk / chunks * several, top = chunk % chunks * taken;
      const long count = std::min(taken, g.grid[0] - top), rows = count + reach[0];
      const long images = std::min(g.batch, first + several) - first;
      places_of_words.clear();
      for (long number = 0; number < images; ++number) {
        window.read(pixels + number * one, first + number, top, count);
        for (long i = 0; i < rows; ++i) {
          for (long j = 0; j < pitch; j += 2)
            places_of_words.push_back(number * one + (s * i * whole.width + s * j) * g.channels);
          const long from = ((first + number) * g.grid[0] + top + i) * g.grid[1] * g.outputs;
          if (i < count)
            copy(row, grid.x + from, grid.gate ? grid.gate + from : nullptr,
                 g.grid[1] * g.outputs);
          for (long n = 0; n < g.outputs; n += PANEL) {
            const long here = i < count ? std::min<long>(PANEL, g.outputs - n) : 0;
            uint32_t* to = right + (n / PANEL * most + (number * rows + i) * pitch) / 2 * PANEL;
            for (long j = 0; j < pitch; j += 2, to += PANEL) {
              pair_up(to, row + j * g.outputs + n, here, g.outputs);
              std::memset(to + here, 0, (PANEL - here) * 4);
            }
          }
        }
      }
      const long total = places_of_words.size(), deep = round_up(total, TILE);
      for (long n = 0; n < panels; ++n)
        std::memset(right + (n * most / 2 + total) * PANEL, 0, (deep - total) * PANEL * 4);
      places_of_words.resize(deep, places_of_words.back());
      // What lies behind is read by the last taps, and multiplied by zero: it must be a number.
      for (long c = 0; c < channels; ++c)
        std::memset(planes + c * length + 2 * deep, 0, (length - most) * sizeof(bfloat16));
      auto shift = [&](long tap) {
        const Tap &down = places[0][tap / g.kernel[1]], &right = places[1][tap % g.kernel[1]];
        return (down.shift - least[0]) * pitch + right.shift - least[1];
      };
      auto product = [&](const bfloat16* a, long apart, long count, long n, float* sum) {
        const Term<bfloat16> term{a, right + n * (most / 2), deep};
        multiply_tiles(sum, sum, &term, 1, {apart, 2, PANEL, PANEL},
                       {TILE * apart, TILE * PANEL}, count > TILE, outputs - n);
      };
      for (long plane = 0; plane < s * s; ++plane) {
        const bfloat16* corner = pixels + (plane / s * whole.width + plane % s) * g.channels;
        const long apart = s * g.channels;
        if (g.channels <= 3)
          for (long c = 0; c < g.channels; ++c)
            for (long word = 0; word < deep; ++word)
              pair_up((uint32_t*)(planes + c * length) + word, corner + places_of_words[word] + c,
                      1, apart);
        else
          for (long word = 0; word < deep; word += TILE)
            for (long c = 0; c < channels; c += TILE)
              transpose((uint32_t*)(planes + c * length) + word, length / 2, [&](int i) {
                return paired(corner + places_of_words[word + i] + c, apart);
              });
        // What is near stays near: all taps that see some channels of this plane.
        for (long n = 0; n < (together ? 1 : outputs); n += PANEL)
          for (long c = 0; c < (together ? 1 : channels); c += PANEL)
            for (long tap = 0; tap < g.taps(); ++tap) {
              if (places[0][tap / g.kernel[1]].plane * s + places[1][tap % g.kernel[1]].plane !=
                  plane)
                continue;
              const bfloat16* a = planes + c * length + shift(tap);
              if (!together)
                product(a, length, channels - c, n,
                        sums + ((tap * across + c / PANEL) * panels + n / PANEL) * PANEL * PANEL);
              for (long row = 0; together && row < g.channels; ++row)
                std::memcpy(patches + (tap * g.channels + row) * most, a + row * length, deep * 4);
            }
      }
      for (long n = 0; together && n < outputs; n += PANEL)
        product(patches, most, filled, n, sums + n * PANEL);
    }
  });
  add_up(pool, g, totals, parts, size, out, [&](long number, long n) {
    const long c = together ? number : number % g.channels,
               block = together ? 0 : number / g.channels * across + c / PANEL;
    return ((block * panels + n / PANEL) * PANEL + c % PANEL) * PANEL;
  });
}

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

// Whether there are fewer products, and whole panels of channels; and of bfloat16 so many positions
// that it pays to round 16 kernels.
template <class T>
bool paired(const Geometry& g) {
  const long positions = g.batch * g.grid[0] * g.grid[1];
  if (tiled<T>() || (!IN_FLOATS<T> && positions <= 512)) return false;
  for (int axis = 0; axis < 2; ++axis)
    if (g.kernel[axis] != 3 || g.low[axis] != 0 || g.image[axis] != 2 * g.grid[axis]) return false;
  return g.stride == 2 && g.channels % PANEL == 0 && g.outputs % PANEL == 0;
}

// The kernels of both axes, each packed as (panels, words of inputs, PANEL): of an axis w0, w1, w2,
// w0 + w2.
constexpr int KERNELS = 4, SUM = 3;
template <class E>
struct Kernels {
  const long inputs, panels, block;
  uint32_t* packed;

  Kernels(ffi::ThreadPool& pool, const Matrix<float>& matrix, bool worth)
      : inputs(matrix.inputs), panels((matrix.outputs + PANEL - 1) / PANEL),
        block(inputs / PER_WORD<E> * PANEL),
        packed(memory<uint32_t>(MATRIX, KERNELS * KERNELS * panels * block)) {
    const long most = round_up(inputs / 2, TILE);  // rows at a time
    const auto pack = [&](long item) {
      const long panel = item % panels, first = item / panels * most;
      const long tall = std::min(most, inputs - first);
      const long size = tall * PANEL;
      Matrix<float> some = matrix;
      some.matrix += first * matrix.row, some.inputs = tall;
      float* room = memory<float>(COLUMNS, sizeof(E) == 4 ? 0 : KERNELS * KERNELS * size);
      const auto place = [&](int i, int j) {
        return at(i, j) + panel * block + first / PER_WORD<E> * PANEL;
      };
      const auto made = [&](int i, int j) {
        return sizeof(E) == 4 ? (float*)place(i, j) : room + (i * KERNELS + j) * size;
      };
      const auto add = [&](int i, int j, const float* a, const float* b) {
        for (long n = 0; n < size; n += LANES)
          *(Floats*)(made(i, j) + n) = *(const Floats*)(a + n) + *(const Floats*)(b + n);
      };
      for (int i = 0; i < SUM; ++i) {
        for (int j = 0; j < SUM; ++j)
          some.pack((uint32_t*)made(i, j), {{0, 0}, 1, {1, 1}, 1, {{0, 0, 1, i * SUM + j, 1}}},
                    panel * PANEL);
        add(i, SUM, made(i, 0), made(i, 2));
      }
      for (int j = 0; j < KERNELS; ++j) add(SUM, j, made(0, j), made(2, j));
      for (int i = 0; i < KERNELS && sizeof(E) == 2; ++i)
        for (int j = 0; j < KERNELS; ++j)
          for (long k = 0; k < tall; k += 2)
            pair_rounded(place(i, j) + k / 2 * PANEL, made(i, j) + k * PANEL,
                         made(i, j) + (k + 1) * PANEL, PANEL);
    };
    parallel(pool, (inputs + most - 1) / most * panels, pack, worth);
  }
  uint32_t* at(int i, int j) const { return packed + (i * KERNELS + j) * panels * block; }
};

// What is summed up of an axis: the numbers of a part by these kernels. The middle is kept, and
// what is joined to it begins with it; the rest stands alone, and so begins with the bias. And
// which pixel it makes of those of the pair that are written.
enum Role { MIDDLE, JOINED, ALONE };
struct Product {
  Role role;
  int part, kernels[2], pixel;
};

// Rows that begin where `at` says, or are all the same.
template <class T>
struct Rows {
  T* first;
  const long* at;
  Rows from(long m, long n) const { return {first + n, at + m}; }
};
// sums (M, PANEL) = start + more + products; there need not be more.
template <int M, class E, class Out>
void multiply_rows(Rows<Out> sums, Rows<const float> start, Rows<const float> more,
                   const Term<E>* terms, long length, const Strides& strides,
                   const Out* gate) {
  constexpr int N = PANEL / LANES;
  Floats sum[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      sum[m][n] = *(const Floats*)(start.first + start.at[m] + n * LANES);
      if (n * LANES * sizeof(Out) % LINE == 0)
        __builtin_prefetch(sums.first + sums.at[m] + n * LANES, 1);
    }
  if (gate)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < PANEL; n += LINE / sizeof(Out)) __builtin_prefetch(gate + sums.at[m] + n);
  if (more.first)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n)
        sum[m][n] += *(const Floats*)(more.first + more.at[m] + n * LANES);
  add_products(sum, terms, length, strides);
  if (gate)
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
      finish<true>(sums.first + sums.at[m], sum[m], gate + sums.at[m]);
  else
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish<false>(sums.first + sums.at[m], sum[m], gate);
}
template <class E, class Out, int... M>
auto choose_rows(long rows, std::integer_sequence<int, M...>) {
  static constexpr decltype(&multiply_rows<1, E, Out>) all[] = {multiply_rows<M + 1, E, Out>...};
  return all[rows - 1];
}

// Gathers and scatters of pairs: `fill` makes their planes, and of images (batch, height, width,
// outputs) each pair is `size` by `size` pixels. The first product is the middle.
template <class T, int N, int P, class Fill>
void apply_pairs(ffi::ThreadPool& pool, const Geometry& g, const Part (&axis)[N], const Fill& fill,
                 const Matrix<float>& matrix, const float* bias, const Product (&products)[P],
                 const T* gate, T* out, long height, long width, long size) {
  const long inputs = matrix.inputs, outputs = matrix.outputs;
  const bool worth = g.batch * g.grid[0] * g.grid[1] * g.taps() * inputs * outputs > 6 << 20;
  using E = Multiplied<T>;
  constexpr long PER = PER_WORD<E>;
  const Kernels<E> kernels(pool, matrix, worth);
  std::vector<float> zeros(kernels.panels * PANEL), start(zeros);
  if (bias) std::copy_n(bias, outputs, start.begin());
  long numbers = 0;
  for (const Part& part : axis) numbers += part.depth;
  const Portions portions(g, numbers * numbers * inputs + 2 * P * outputs);
  // Where a portion's sums that are kept and its pixels lie, of all pairs and of those that have a
  // second position. What other portions have of them comes first.
  const Pairs most = portions[0];
  const long all = most.images * most.rows[0] * most.columns[0];
  const std::vector<long> same(all);
  std::vector<long> kept_at[2][2], pixel_at[2][2];
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      for (long image = 0; image < most.images; ++image)
        for (long row = 0; row < most.rows[i]; ++row)
          for (long column = 0; column < most.columns[j]; ++column) {
            const long pair = (image * most.rows[0] + row) * most.columns[0] + column;
            kept_at[i][j].push_back(pair * outputs);
            pixel_at[i][j].push_back(((image * height + row * size) * width + column * size) *
                                     outputs);
          }
  const auto some = [&](long item) {
    const Pairs pairs = portions[item];
    const Planes<N> planes(axis, pairs, inputs / PER);
    uint32_t* x = memory<uint32_t>(PLANES, planes.size);
    fill(x, planes);
    float* kept = memory<float>(SUMS, 2 * P * all * outputs);
    const long corner = (pairs.image * height + pairs.row * size) * width * outputs;
    std::vector<Term<E>> terms;
    for (int i = 0; i < P; ++i)
      for (int j = 0; j < P; ++j) {
        const auto &[down, row_part, row_kernels, row] = products[i];
        const auto &[across, column_part, column_kernels, column] = products[j];
        const E* a = (const E*)(x + planes.begin[row_part][column_part]);
        terms.clear();
        for (int k = 0; k < axis[row_part].depth; ++k)
          for (int l = 0; l < axis[column_part].depth; ++l, a += inputs)
            terms.push_back({a, kernels.at(row_kernels[k], column_kernels[l]), inputs / PER});
        const bool second[] = {axis[row_part].second, axis[column_part].second};
        const long* at = kept_at[second[0]][second[1]].data();
        // Sums of the middle of the rows, (0, j), and of that of the columns, (i, 0).
        const auto sums = [&](int i, int j) { return kept + (i ? P + i : j) * all * outputs; };
        Rows<const float> begin{zeros.data(), same.data()}, more{nullptr, at};
        if (down != JOINED && across != JOINED) begin.first = start.data();
        if (across == JOINED) begin = {sums(i, 0), at};
        if (down == JOINED && j > 0) more.first = sums(0, j);
        const long count = planes.count(row_part, column_part);
        const long deep = planes.depth(row_part, column_part);
        const auto make = [&](auto made, auto* shut) {
          using Out = std::remove_pointer_t<decltype(made.first)>;
          for (long n = 0; n < outputs; n += PANEL)
            by_parts(count, [&](long m, long tall) {
              choose_rows<E, Out>(tall, std::make_integer_sequence<int, ROWS>())(
                  made.from(m, n), begin.from(m, n), more.first ? more.from(m, n) : more,
                  terms.data(), terms.size(),
                  {PER * deep, PER, PANEL, 0, PER * m * deep, n * inputs / PER},
                  shut ? shut + n : nullptr);
            });
        };
        const long to = corner + (row * width + column) * outputs;
        if (i == 0 || j == 0)
          make(Rows<float>{sums(i, j), at}, (const float*)nullptr);
        else
          make(Rows<T>{out + to, pixel_at[second[0]][second[1]].data()},
               gate ? gate + to : nullptr);
      }
  };
  parallel(pool, portions.count(), some, worth);
}

template <class T>
void gather_pairs(ffi::ThreadPool& pool, const Geometry& g, const Source<T>& image,
                  const Matrix<float>& matrix, const float* bias, const T* gate, T* out) {
  static constexpr Product products[] = {
      {MIDDLE, 1, {SUM}}, {JOINED, 0, {0, 1}, 0}, {JOINED, 2, {2, 1}, 1}};
  const auto planes = [&](uint32_t* to, const Planes<3>& planes) {
    fill<5, PIXELS>(to, planes, image, 4, 0);
  };
  apply_pairs(pool, g, PIXELS.parts, planes, matrix, bias, products, gate, out, g.grid[0],
              g.grid[1], 2);
}

template <class T>
void scatter_pairs(ffi::ThreadPool& pool, const Geometry& g, const Source<T>& grid,
                   const Matrix<float>& matrix, const float* bias, const T* gate, T* out) {
  static constexpr Product products[] = {{MIDDLE, 1, {SUM}},
                                         {JOINED, 0, {2}, 0},
                                         {ALONE, 1, {1}, 1},
                                         {JOINED, 2, {0}, 2},
                                         {ALONE, 3, {1}, 3}};
  const auto planes = [&](uint32_t* to, const Planes<4>& planes) {
    fill<3, NEIGHBOURS>(to, planes, grid, 2, -1);
  };
  apply_pairs(pool, g, NEIGHBOURS.parts, planes, matrix, bias, products, gate, out, g.image[0],
              g.image[1], 4);
}

template <class T>
void correlate_pairs(ffi::ThreadPool& pool, const Geometry& g, const Source<T>& image,
                     const Source<T>& grid, float* out) {
  using E = Multiplied<T>;
  constexpr int PER = PER_WORD<E>;
  const long channels = g.channels, outputs = g.outputs;
  const long block = channels * round_up(outputs, PANEL), size = KERNELS * KERNELS * block;
  const Portions portions(g, 25 * channels + 9 * outputs, PER);
  const long all = portions.count(), parts = std::min<long>(PARTS, all);
  float* totals = memory<float>(TOTALS, parts * size);
  // Which numbers of which part the kernels of an axis are multiplied by.
  struct Place {
    int part, number;
  };
  static const std::vector<Place> numbers[] = {{{0, 0}}, {{0, 1}, {2, 1}}, {{2, 0}}, {{1, 0}}};
  parallel(pool, parts, [&](long part) {
    float* sums = totals + part * size;
    const float zeros[PANEL] = {};  // with which they begin
    std::vector<Term<E>> terms;
    const long first = all * part / parts;
    for (long item = first; item < all * (part + 1) / parts; ++item) {
      const Planes<3> left(PIXELS.parts, portions[item], channels);
      const Planes<3> right(POSITIONS.parts, portions[item], outputs);
      uint32_t* x = memory<uint32_t>(PLANES, left.size);
      uint32_t* y = memory<uint32_t>(RIGHT, right.size);
      fill<5, PIXELS, PER>(x, left, image, 4, 0);
      fill<2, POSITIONS, PER>(y, right, grid, 2, 0);
      for (int i = 0; i < KERNELS; ++i)
        for (int j = 0; j < KERNELS; ++j) {
          long step = 0;
          terms.clear();
          for (auto [p, k] : numbers[i])
            for (auto [q, l] : numbers[j]) {
              step = left.depth(p, q);
              const uint32_t* a = x + left.begin[p][q] + (k * PIXELS.parts[q].depth + l) * channels;
              terms.push_back({(const E*)a, y + right.begin[p][q], right.count(p, q)});
            }
          for (long n = 0; n < outputs; n += PANEL)
            by_parts(channels, [&](long m, long height) {
              float* sum = sums + (i * KERNELS + j) * block + n * channels + m * PANEL;
              choose<E>(height, outputs - n)(
                  sum, item > first ? sum : zeros, terms.data(), terms.size(),
                  {PER, PER * step, outputs, PANEL, PER * m, n}, nullptr);
            });
        }
    }
    // What belongs to w0 + w2 belongs to both.
    const auto add = [&](int i, int j, int k, int l) {
      float* to = sums + (i * KERNELS + j) * block;
      for (long n = 0; n < block; n += LANES)
        *(Floats*)(to + n) += *(const Floats*)(sums + (k * KERNELS + l) * block + n);
    };
    for (int j = 0; j < KERNELS; ++j) add(0, j, SUM, j), add(2, j, SUM, j);
    for (int i = 0; i < SUM; ++i) add(i, 0, i, SUM), add(i, 2, i, SUM);
  });
  add_up(pool, g, totals, parts, size, out, [&](long i, long n) {
    const long tap = i / channels;
    return (tap / SUM * KERNELS + tap % SUM) * block + n * channels + i % channels * PANEL;
  });
}

float widened(float x) { return x; }
float widened(bfloat16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Images summed to a number for each channel, the gradient of a bias.
template <class T>
void total(ffi::ThreadPool& pool, const T* x, long positions, long channels, float* out) {
  constexpr int N = LANES * PER_WORD<T>, AT_ONCE = 4;
  // Few channels are taken as those of several positions that are neighbours.
  const long single = channels;
  while (channels < N && positions % 2 == 0) positions /= 2, channels *= 2;
  const long parts = std::clamp(positions / 64, 1L, 8L), blocks = (channels + 511) / 512;
  float* totals = memory<float>(TOTALS, parts * channels);
  const auto some = [&](long item) {
    const long part = item / blocks, block = item % blocks;
    float* sums = totals + part * channels;
    const long first = positions * part / parts, last = positions * (part + 1) / parts;
    long c = block * 512;
    const long until = std::min(channels, c + 512);
    for (; c + N <= until; c += N) {
      Floats sum[AT_ONCE][PER_WORD<T>] = {};
      auto add = [&](int n, long i) {
        const Words words = *(const Words*)(x + i * channels + c);
        if (sizeof(T) == 4) {
          sum[n][0] += (Floats)words;
        } else {  // the even ones, and the odd ones
          sum[n][0] += (Floats)(words << 16);
          sum[n][PER_WORD<T> - 1] += (Floats)(words & 0xffff0000u);
        }
      };
      long i = first;
      for (; i + AT_ONCE <= last; i += AT_ONCE)
#pragma GCC unroll 4
        for (int n = 0; n < AT_ONCE; ++n) add(n, i + n);
      for (; i < last; ++i) add(0, i);
      for (int p = 0; p < PER_WORD<T>; ++p) {
        const Floats all = (sum[0][p] + sum[1][p]) + (sum[2][p] + sum[3][p]);
        for (int lane = 0; lane < LANES; ++lane) sums[c + lane * PER_WORD<T> + p] = all[lane];
      }
    }
    for (; c < until; ++c) {
      sums[c] = 0;
      for (long i = first; i < last; ++i) sums[c] += widened(x[i * channels + c]);
    }
  };
  parallel(pool, parts * blocks, some, positions * channels > 1 << 16);
  std::memset(out, 0, single * sizeof(float));
  for (long row = 0; row < parts * channels; row += single)
    for (long c = 0; c < single; ++c) out[c] += totals[row + c];
}

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

// Adam's step: averages of the gradient and of its square, and the update that they make, of all
// parameters at once. `scales` says, in this order: what the averages keep of themselves; by what
// the first average, the gradient and the second average are multiplied; Adam's epsilon; the rate
// of the update; and what the averages of centred pairs keep of themselves. The update is written,
// or the parameters with it, if they are given.
struct Leaf {
  const float *gradient, *mean, *square, *params;
  float *made, *new_mean, *new_square;
  long count;
};
// A kernel, a row for each input, and its bias: jaxdae.optimizers.centered.
struct Pair {
  long kernel, bias;
  const float *cross, *square;
  float *new_cross, *new_square;
};
float root(float x) { return __builtin_sqrtf(x); }
Floats root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_sqrt_ps((__m512)x);
#else
  for (int lane = 0; lane < LANES; ++lane) x[lane] = root(x[lane]);
  return x;
#endif
}
// A float, or a vector of them that may lie anywhere.
template <class F>
F load(const float* x) {
  F value;
  std::memcpy(&value, x, sizeof(F));
  return value;
}
template <class F>
void put(float* out, F x) {
  std::memcpy(out, &x, sizeof(F));
}
// Numbers of a leaf, from n on. Without `shift` their gradient counts as it is; with it, without
// `center` times that, and center times the update is added to `moved`.
template <class F>
inline void adam_at(const float* scales, const Leaf& leaf, long n, float center,
                    const float* shift, float* moved) {
  F gradient = load<F>(leaf.gradient + n);
  if (shift) gradient -= center * load<F>(shift);
  const F mean = scales[0] * load<F>(leaf.mean + n) + (1 - scales[0]) * gradient;
  const F square =
      scales[1] * load<F>(leaf.square + n) + (1 - scales[1]) * (gradient * gradient);
  const F update = scales[6] * (scales[2] * mean + scales[3] * gradient) /
                   (root(scales[4] * square) + scales[5]);
  put<F>(leaf.new_mean + n, mean), put<F>(leaf.new_square + n, square);
  put<F>(leaf.made + n, leaf.params ? load<F>(leaf.params + n) + update : update);
  if (shift) put<F>(moved, load<F>(moved) + center * update);
}
void adam_row(const float* scales, const Leaf& leaf, long first, long count, float center,
              const float* shift, float* moved) {
  long n = 0;
  for (; n + LANES <= count; n += LANES)
    adam_at<Floats>(scales, leaf, first + n, center, shift ? shift + n : nullptr, moved + n);
  for (; n < count; ++n)
    adam_at<float>(scales, leaf, first + n, center, shift ? shift + n : nullptr, moved + n);
}
bool any(Integers truths) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)truths, (__m512i)truths);
#else
  bool found = false;
  for (int lane = 0; lane < LANES; ++lane) found |= truths[lane] != 0;
  return found;
#endif
}
float sum_of_lanes(Floats x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
  return sum;
#endif
}
float dot(const float* a, const float* b, long count) {
  Floats sums{};
  long n = 0;
  for (; n + LANES <= count; n += LANES) sums += load<Floats>(a + n) * load<Floats>(b + n);
  float sum = sum_of_lanes(sums);
  for (; n < count; ++n) sum += a[n] * b[n];
  return sum;
}
void adam(ffi::ThreadPool& pool, const float* scales, const std::vector<Leaf>& leaves,
          const std::vector<Pair>& pairs) {
  constexpr long TAKEN = 4096;  // parameters at a time
  const float keep = scales[7];
  struct Item {
    const Leaf* leaf;
    const Pair* pair;
    long first, count, moved;  // of rows, if they are a pair's; and where they are summed up
  };
  std::vector<Item> items;
  std::vector<const Pair*> pair_of(leaves.size());
  long length = 0;
  for (const Pair& pair : pairs) pair_of[pair.kernel] = &pair;
  for (size_t i = 0; i < leaves.size(); ++i) {
    const long row = pair_of[i] ? leaves[pair_of[i]->bias].count : 1;
    const long rows = row ? leaves[i].count / row : 0;
    for (long first = 0, most = std::max(1L, TAKEN / std::max(1L, row)); first < rows;
         first += most) {
      items.push_back({&leaves[i], pair_of[i], first, std::min(most, rows - first), length});
      if (pair_of[i]) length += row;
    }
  }
  float* totals = memory<float>(TOTALS, length);
  std::memset(totals, 0, length * sizeof(float));
  for (const Pair& pair : pairs) {
    const Leaf& bias = leaves[pair.bias];
    *pair.new_square = keep * *pair.square +
                       (1 - keep) * dot(bias.gradient, bias.gradient, bias.count);
  }
  const auto some = [&](long number) {
    const auto [leaf, pair, first, count, moved] = items[number];
    if (!pair) {
      adam_row(scales, *leaf, first, count, 0, nullptr, nullptr);
      return;
    }
    const float* shift = leaves[pair->bias].gradient;
    const float square = *pair->new_square > 0 ? *pair->new_square : 1;  // else no gradient yet
    const long row = leaves[pair->bias].count;
    for (long k = first; k < first + count; ++k) {
      const float cross = keep * pair->cross[k] +
                          (1 - keep) * dot(leaf->gradient + k * row, shift, row);
      pair->new_cross[k] = cross;
      adam_row(scales, *leaf, k * row, row, cross / square, shift, totals + moved);
    }
  };
  parallel(pool, items.size(), some, items.size() > 1);
  for (const Item& item : items)
    if (item.pair) {
      const Leaf& bias = leaves[item.pair->bias];
      const float* moved = totals + item.moved;
      long n = 0;
      for (; n + LANES <= bias.count; n += LANES)
        put(bias.made + n, load<Floats>(bias.made + n) - load<Floats>(moved + n));
      for (; n < bias.count; ++n) bias.made[n] -= moved[n];
    }
}

// Normal numbers, bit for bit JAX's: threefry's bits of a place, a uniform number made of them, and
// the inverse of the error function with XLA's operations, in XLA's order.

Floats fused(Floats a, Floats b, Floats c) {  // a b + c, rounded once where XLA's is
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
  for (int lane = 0; lane < LANES; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  return c;
#else
  return a * b + c;
#endif
}
// A polynomial, the coefficient of the highest power first.
template <int N>
inline Floats polynomial(Floats x, const float (&coefficients)[N]) {
  Floats sum = Floats{} + coefficients[0];
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) sum = fused(sum, x, Floats{} + coefficients[i]);
  return sum;
}

// Threefry-2x32 of 20 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
inline Words hashed(Words place, const uint32_t* key) {
  constexpr int ROTATIONS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[] = {key[0], key[1], key[0] ^ key[1] ^ 0x1bd11bda};
  Words a = Words{} + keys[0], b = place + keys[1];
#pragma GCC unroll 5
  for (uint32_t group = 0; group < 5; ++group) {
#pragma GCC unroll 4
    for (int round = 0; round < 4; ++round) {
      const int by = ROTATIONS[group % 2][round];
      a += b;
      b = a ^ (b << by | b >> (32 - by));
    }
    a += keys[(group + 1) % 3], b += keys[(group + 2) % 3] + group + 1;
  }
  return a ^ b;
}

// log(1 + x) of what is above -1 and at most 0, as Cephes has it: near 0 by a quotient.
inline Floats log_plus_one(Floats x) {
  const Floats square = x * x;
  const Floats above =
      polynomial(x, {4.5270000862445199635215e-5f, 4.9854102823193375972212e-1f,
                     6.5787325942061044846969f, 2.9911919328553073277375e1f,
                     6.0949667980987787057556e1f, 5.7112963590585538103336e1f,
                     2.0039553499201281259648e1f});
  const Floats below =
      polynomial(x, {1.0f, 1.5062909083469192043167e1f, 8.3047565967967209469434e1f,
                     2.2176239823732856465394e2f, 3.0909872225312059774938e2f,
                     2.1642788614495947685003e2f, 6.0118660497603843919306e1f});
  const Floats near = x + fused(square, Floats{} - 0.5f, x * square * (above / below));

  const Words bits = (Words)(x + 1.0f);
  const Floats mantissa = (Floats)((bits & 0x807fffffu) | 0x3f000000u);  // 0.5 to 1
  Floats exponent = __builtin_convertvector((Integers)(bits >> 23) - 127, Floats) + 1.0f;
  const auto low = mantissa < 0.707106781186547524f;
  exponent -= low ? Floats{} + 1.0f : Floats{};
  const Floats t = mantissa - 1.0f + (low ? mantissa : Floats{});
  const Floats second = t * t, third = second * t;
  Floats sum = polynomial(t, {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f});
  sum = fused(sum, third, polynomial(t, {-1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f}));
  sum = fused(sum, third, polynomial(t, {2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f}));
  sum = fused(sum, third, exponent * -2.12194440e-4f);
  sum += fused(second, Floats{} - 0.5f, t);
  return x > -0.41421356237309503f ? near : fused(exponent, Floats{} + 0.693359375f, sum);
}

// Giles, "Approximating the erfinv function", 2010.
inline Floats normal(Words bits) {
  constexpr float CENTER[] = {2.81022636e-08f, 3.43273939e-07f, -3.5233877e-06f,
                              -4.39150654e-06f, 0.00021858087f,  -0.00125372503f,
                              -0.00417768164f,  0.246640727f,    1.50140941f};
  constexpr float TAIL[] = {-0.000200214257f, 0.000100950558f, 0.00134934322f,
                            -0.00367342844f,  0.00573950773f,  -0.0076224613f,
                            0.00943887047f,   1.00167406f,     2.83297682f};
  const Floats from_one_to_two = (Floats)(bits >> 9 | 0x3f800000u);
  const Floats uniform = (from_one_to_two - 1.0f) * 2.0f - 0.99999994f;  // exact but for the last
  const Floats w = -log_plus_one(uniform * -uniform);
  Floats sum = polynomial(w - 2.5f, CENTER);
  const auto tail = w >= 5.0f;
  if (any(tail)) sum = tail ? polynomial(root(w) - 3.0f, TAIL) : sum;
  return uniform * sum * 1.41421356237309505f;
}

// Rows of them, each of its key.
void normals(ffi::ThreadPool& pool, const uint32_t* keys, long rows, long count, float* out) {
  constexpr long TAKEN = 64 * LANES;
  const long parts = (count + TAKEN - 1) / TAKEN;
  Words lanes;
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
  const auto some = [&](long item) {
    const long row = item / parts, first = item % parts * TAKEN;
    const long size = std::min(TAKEN, count - first);
    // One after the other: either chain is long, and the next numbers begin theirs meanwhile.
    Words bits[TAKEN / LANES];
    for (long n = 0; n * LANES < size; ++n)
      bits[n] = hashed(lanes + uint32_t(first + n * LANES), keys + 2 * row);
    float* to = out + row * count + first;
    long n = 0;
    for (; (n + 1) * LANES <= size; ++n) put(to + n * LANES, normal(bits[n]));
    if (const long rest = size - n * LANES) {
      const Floats last = normal(bits[n]);
      std::memcpy(to + n * LANES, &last, rest * sizeof(float));
    }
  };
  parallel(pool, rows * parts, some, rows * count > 1 << 11);
}

// As jaxdae.native's `_sizes` says it: images and grids come without their shapes.
Geometry geometry(ffi::Span<const int64_t> n) {
  return {n[0], {n[1], n[2]}, {n[3], n[4]}, n[5], {n[6], n[7]}, {n[8], n[9]}, n[10], n[11],
          n[12] != 0};
}

template <class T>
const T* optional(ffi::AnyBuffer buffer) {
  return buffer.element_count() ? (const T*)buffer.untyped_data() : nullptr;
}

// What a gather multiplies by, and what a scatter does.
template <class T>
Matrix<T> forward(const Geometry& g, const float* weights) {
  return {weights + g.first(), g.tap_step(), g.channel_step(), g.output_step(), g.channels,
          g.outputs};
}
template <class T>
Matrix<T> backward(const Geometry& g, const float* weights) {
  return {weights + g.first(), g.tap_step(), g.output_step(), g.channel_step(), g.outputs,
          g.channels};
}

template <class T>
void run_gather(ffi::ThreadPool& pool, const Geometry& g, ffi::AnyBuffer matrix, ffi::AnyBuffer x,
                ffi::AnyBuffer bias, ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y,
                ffi::Result<ffi::AnyBuffer> y) {
  Source<T> image{(const T*)x.untyped_data(), optional<T>(gate_x), g.image[0], g.image[1],
                  g.channels, g.batch};
  const float* weights = (const float*)matrix.untyped_data();
  if (g.dense()) {
    dense_product<T, float, T>(pool, g.batch, g.outputs, g.channels,
                               {image.x, image.gate, g.channels, 1},
                               {weights, nullptr, g.outputs, 1}, optional<float>(bias),
                               optional<T>(gate_y), (T*)y->untyped_data());
    return;
  }
  const Matrix<T> taps = forward<T>(g, weights);
  if (paired<T>(g) && !taps.in_place(g.batch * g.grid[0] * g.grid[1])) {
      gather_pairs(pool, g, image, forward<float>(g, weights), optional<float>(bias),
                   optional<T>(gate_y), (T*)y->untyped_data());
      return;
    }
  auto f = few<T>(g.outputs) ? apply_few<T> : apply<T>;
  if constexpr (std::is_same_v<Multiplied<T>, T>)
    if (single_channel(g) && !tiled<T>()) f = apply_patches<T>;
  f(pool, {gathered(g)}, image, taps, optional<float>(bias), optional<T>(gate_y),
    (T*)y->untyped_data(), g.batch, g.grid[0], g.grid[1]);
}

ffi::Error gather(ffi::ThreadPool pool, ffi::AnyBuffer matrix, ffi::AnyBuffer x,
                  ffi::AnyBuffer bias, ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y,
                  ffi::Result<ffi::AnyBuffer> y, ffi::Span<const int64_t> sizes) {
  const Geometry g = geometry(sizes);
  run_gather<Element>(pool, g, matrix, x, bias, gate_x, gate_y, y);
  return ffi::Error::Success();
}

template <class T>
void run_scatter(ffi::ThreadPool& pool, const Geometry& g, ffi::AnyBuffer matrix, ffi::AnyBuffer y,
                 ffi::AnyBuffer bias, ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y,
                 ffi::Result<ffi::AnyBuffer> x) {
  Source<T> grid{(const T*)y.untyped_data(), optional<T>(gate_y), g.grid[0], g.grid[1], g.outputs,
                 g.batch};
  const float* weights = (const float*)matrix.untyped_data();
  T* out = (T*)x->untyped_data();
  if (g.dense()) {
    dense_product<T, float, T>(pool, g.batch, g.channels, g.outputs,
                               {grid.x, grid.gate, g.outputs, 1},
                               {weights, nullptr, 1, g.outputs}, optional<float>(bias),
                               optional<T>(gate_x), out);
    return;
  }
  if (tiled<T>() && g.stride == 1 && g.kernel[0] * g.channels <= TILE) {
    scatter_rows(pool, g, (const Source<bfloat16>&)grid, weights, optional<float>(bias),
                 optional<bfloat16>(gate_x), (bfloat16*)out);
    return;
  }
  const Matrix<T> taps = backward<T>(g, weights);
  if (paired<T>(g) && !taps.in_place(g.batch * g.grid[0] * g.grid[1])) {
      scatter_pairs(pool, g, grid, backward<float>(g, weights), optional<float>(bias),
                    optional<T>(gate_x), out);
      return;
    }
  const auto phases = scattered(g);
  if (few<T>(g.channels) && along(phases, grid)) {
    apply_along(pool, phases[0], grid, taps, optional<float>(bias), optional<T>(gate_x), out,
                g.batch, g.image[0], g.image[1]);
    return;
  }
  const auto f = few<T>(g.channels) ? apply_few<T> : apply<T>;
  f(pool, phases, grid, taps, optional<float>(bias), optional<T>(gate_x), out, g.batch,
    g.image[0], g.image[1]);
}

ffi::Error scatter(ffi::ThreadPool pool, ffi::AnyBuffer matrix, ffi::AnyBuffer y,
                   ffi::AnyBuffer bias, ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y,
                   ffi::Result<ffi::AnyBuffer> x, ffi::Span<const int64_t> sizes) {
  const Geometry g = geometry(sizes);
  run_scatter<Element>(pool, g, matrix, y, bias, gate_x, gate_y, x);
  return ffi::Error::Success();
}

template <class T>
void run_correlate(ffi::ThreadPool& pool, const Geometry& g, ffi::AnyBuffer x, ffi::AnyBuffer y,
                   ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y, float* out) {
  Source<T> image{(const T*)x.untyped_data(), optional<T>(gate_x), g.image[0], g.image[1],
                  g.channels, g.batch};
  Source<T> grid{(const T*)y.untyped_data(), optional<T>(gate_y), g.grid[0], g.grid[1], g.outputs,
                 g.batch};
  if (g.dense()) {
    dense_product<T, T, float>(pool, g.channels, g.outputs, g.batch,
                               {image.x, image.gate, 1, g.channels},
                               {grid.x, grid.gate, g.outputs, 1}, nullptr, nullptr, out);
    return;
  }
  if (paired<T>(g)) {
      correlate_pairs(pool, g, image, grid, out);
      return;
    }
  if (tiled<T>())
    correlate_tiles(pool, g, (const Source<bfloat16>&)image, (const Source<bfloat16>&)grid, out);
  else if (single_channel(g))
    correlate_single(pool, g, image, grid, out);
  else
    correlate<T>(pool, g, image, grid, out);
}

ffi::Error correlation(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer y,
                       ffi::AnyBuffer, ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y,
                       ffi::Result<ffi::AnyBuffer> matrix, ffi::Span<const int64_t> sizes) {
  const Geometry g = geometry(sizes);
  run_correlate<Element>(pool, g, x, y, gate_x, gate_y, (float*)matrix->untyped_data());
  return ffi::Error::Success();
}

ffi::Error totals(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> sums) {
  const long channels = sums->element_count(), positions = x.element_count() / channels;
  float* out = (float*)sums->untyped_data();
  total(pool, (const Element*)x.untyped_data(), positions, channels, out);
  return ffi::Error::Success();
}

// The leaves' gradients, means and squares, the pairs' averages, and the parameters, if the update
// is added to them. `pairs` says which leaves those are, the kernels and then the biases.
ffi::Error adam_step(ffi::ThreadPool pool, ffi::AnyBuffer scales, ffi::RemainingArgs given,
                     ffi::RemainingRets made, ffi::Span<const int64_t> of_pairs) {
  const long couples = of_pairs.size() / 2, count = (made.size() - 2 * couples) / 3;
  const auto in = [&](long at) {
    return (const float*)given.get<ffi::AnyBuffer>(at)->untyped_data();
  };
  const auto out = [&](long at) {
    return (float*)(*made.get<ffi::AnyBuffer>(at))->untyped_data();
  };
  const long params = 3 * count + 2 * couples;
  std::vector<Leaf> leaves;
  for (long i = 0; i < count; ++i) {
    const long size = given.get<ffi::AnyBuffer>(i)->element_count();
    leaves.push_back({in(i), in(count + i), in(2 * count + i),
                      long(given.size()) > params ? in(params + i) : nullptr, out(i),
                      out(count + i), out(2 * count + i), size});
  }
  std::vector<Pair> pairs;
  for (long i = 0; i < couples; ++i) {
    const long cross = 3 * count + i, square = cross + couples;
    pairs.push_back({of_pairs[i], of_pairs[couples + i], in(cross), in(square), out(cross),
                     out(square)});
  }
  adam(pool, (const float*)scales.untyped_data(), leaves, pairs);
  return ffi::Error::Success();
}

ffi::Error normal_numbers(ffi::ThreadPool pool, ffi::AnyBuffer keys,
                          ffi::Result<ffi::AnyBuffer> made) {
  const long rows = keys.element_count() / 2;
  if (rows)
    normals(pool, (const uint32_t*)keys.untyped_data(), rows, made->element_count() / rows,
            (float*)made->untyped_data());
  return ffi::Error::Success();
}

}  // namespace

extern "C" int jaxdae_tiled() { return tiled<Element>(); }

// Each takes its two factors, a bias, and the gates of the image and of the grid; what is empty is
// not there.
static auto signature() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<ffi::Span<const int64_t>>("geometry");
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdae_gather, gather, signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdae_scatter, scatter, signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdae_correlate, correlation, signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxdae_total, totals,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdae_adam, adam_step,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("pairs"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxdae_normal, normal_numbers,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
