// Winograd: products.

#pragma once

#include "winograd_transform.h"

namespace {

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

}  // namespace
