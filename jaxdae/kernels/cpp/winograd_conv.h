// Winograd convolutions: forward, data gradient and weight gradient (see winograd_transform.h).

#pragma once

#include "winograd_transform.h"

namespace {

// True if the shape has a transform and whole panels of channels. With bfloat16 there must be so
// many positions that rounding 16 transformed filters pays.
template <class T>
bool winograd_applies(const ConvShape& s) {
  const long positions = s.batch * s.y_size[0] * s.y_size[1];
  if (use_amx<T>() || (!COMPUTES_IN_F32<T> && positions <= 512)) return false;
  for (int axis = 0; axis < 2; ++axis)
    if (s.kernel[axis] != 3 || s.pad_low[axis] != 0 || s.x_size[axis] != 2 * s.y_size[axis])
      return false;
  return s.stride == 2 && s.x_channels % NR == 0 && s.y_channels % NR == 0;
}

// Filters along an axis: w0, w1, w2, and their sum w0 + w2.
constexpr int FILTERS = 4, SUM = 3;

// The filters of both axes, each packed as (panels, words of inputs, NR).
template <class E>
struct TransformedFilters {
  const long inputs, panels, size;
  uint32_t* packed;

  TransformedFilters(ffi::ThreadPool& pool, const WeightView<float>& weights, bool worth)
      : inputs(weights.inputs), panels(ceil_div(weights.outputs, NR)),
        size(inputs / K_PER_WORD<E> * NR),
        packed(scratch<uint32_t>(Use::WEIGHTS, FILTERS * FILTERS * panels * size)) {
    const long most = round_up(inputs / 2, BLOCK);  // rows at a time
    const auto pack = [&](long item) {
      const long panel = item % panels, first = item / panels * most;
      const long tall = std::min(most, inputs - first), count = tall * NR;
      WeightView<float> some = weights;
      some.weights += first * weights.k_step, some.inputs = tall;
      float* room = scratch<float>(Use::FILTER, sizeof(E) == 4 ? 0 : FILTERS * FILTERS * count);
      const auto place = [&](int i, int j) {
        return at(i, j) + panel * size + first / K_PER_WORD<E> * NR;
      };
      const auto made = [&](int i, int j) {
        return sizeof(E) == 4 ? (float*)place(i, j) : room + (i * FILTERS + j) * count;
      };
      const auto add = [&](int i, int j, const float* a, const float* b) {
        for (long n = 0; n < count; n += LANES)
          vec_f32(made(i, j) + n) = vec_f32(a + n) + vec_f32(b + n);
      };
      for (int i = 0; i < SUM; ++i) {
        for (int j = 0; j < SUM; ++j)
          some.pack((uint32_t*)made(i, j), {{0, 0}, 1, {1, 1}, 1, {{0, 0, 1, i * SUM + j, 1}}},
                    panel * NR);
        add(i, SUM, made(i, 0), made(i, 2));
      }
      for (int j = 0; j < FILTERS; ++j) add(SUM, j, made(0, j), made(2, j));
      for (int i = 0; i < FILTERS && sizeof(E) == 2; ++i)
        for (int j = 0; j < FILTERS; ++j)
          for (long k = 0; k < tall; k += 2)
            round_and_pack_vnni(place(i, j) + k / 2 * NR, made(i, j) + k * NR,
                                made(i, j) + (k + 1) * NR, NR);
    };
    parallel_for(pool, ceil_div(inputs, most) * panels, pack, worth);
  }
  uint32_t* at(int i, int j) const { return packed + (i * FILTERS + j) * panels * size; }
};

// A row of the output transform along an axis: the numbers of a component times these filters. The
// middle is kept; what is joined to it begins with it, what stands alone with the bias. Both make
// pixel `pixel` of a tile.
enum Role { MIDDLE, JOINED, ALONE };
struct OutputRow {
  Role role;
  int component, filters[2], pixel;
};

// Rows of C, or starts of sums, at offsets from a table.
template <class Out>
struct TableRows {
  Out* c;
  const long* table;
  const Out* mask = nullptr;
  long at(int m) const { return table[m]; }
  template <int M, int N>
  void prefetch() const {
    constexpr int STEP = CACHE_LINE / sizeof(Out);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < N * LANES; n += STEP) __builtin_prefetch(c + table[m] + n, 1);
    if (mask)
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N * LANES; n += STEP) __builtin_prefetch(mask + table[m] + n);
  }
};
struct TableStart {
  const float* row;       // all sums begin with this row,
  const float* added[2];  // and with rows of these at the table's offsets; or nullptr
  const long* table;
  template <int M, int N>
  void load(VecF32 (&sum)[M][N]) const {
    StartRows{row, 0}.load(sum);
    for (const float* rows : added)
      if (rows)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
          for (int n = 0; n < N; ++n) sum[m][n] += vec_f32(rows + table[m] + n * LANES);
  }
};

// Convolves by tiles, of which each is `size` by `size` pixels of the result. `transform` fills the
// transform-domain buffer; the first output row is the middle.
template <class T, int N, int P, class Fill>
void winograd_conv(ffi::ThreadPool& pool, const ConvShape& s, const Component (&axis)[N],
                   const Fill& transform, const WeightView<float>& weights, const float* bias,
                   const OutputRow (&output_rows)[P], const T* mask, T* out, long height,
                   long width, long size) {
  using E = ComputeType<T>;
  constexpr long PER = K_PER_WORD<E>;
  // Plan and pack.
  const long inputs = weights.inputs, outputs = weights.outputs;
  const bool worth = s.batch * s.y_size[0] * s.y_size[1] * s.taps() * inputs * outputs > 6 << 20;
  const TransformedFilters<E> filters(pool, weights, worth);
  std::vector<float> zeros(filters.panels * NR), start(zeros);
  if (bias) std::copy_n(bias, outputs, start.begin());
  long numbers = 0;
  for (const Component& component : axis) numbers += component.depth;
  const TileBlocking blocking(s, numbers * numbers * inputs + 2 * P * outputs);
  // Where a block's kept sums and its pixels are: of all tiles, and of those that have a second
  // position down or across. A smaller block uses the first of these.
  const TileBlock most = blocking[0];
  const long tiles = most.images * most.rows[0] * most.columns[0];
  std::vector<long> kept_at[2][2], pixel_at[2][2];
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      for (long image = 0; image < most.images; ++image)
        for (long row = 0; row < most.rows[i]; ++row)
          for (long column = 0; column < most.columns[j]; ++column) {
            const long tile = (image * most.rows[0] + row) * most.columns[0] + column;
            kept_at[i][j].push_back(tile * outputs);
            pixel_at[i][j].push_back(((image * height + row * size) * width + column * size) *
                                     outputs);
          }

  const auto compute = [&](long item) {
    const TileBlock block = blocking[item];
    const TransformLayout<N> layout(axis, block, inputs / PER);
    uint32_t* x = scratch<uint32_t>(Use::TRANSFORM, layout.size);
    transform(x, layout);
    float* kept = scratch<float>(Use::C, 2 * P * tiles * outputs);
    const long corner = (block.image * height + block.row * size) * width * outputs;
    std::vector<KSegment<E>> segments;
    for (int i = 0; i < P; ++i)
      for (int j = 0; j < P; ++j) {
        const OutputRow &down = output_rows[i], &across = output_rows[j];
        const Component &row = axis[down.component], &column = axis[across.component];
        const E* a = (const E*)(x + layout.begin[down.component][across.component]);
        segments.clear();
        for (int k = 0; k < row.depth; ++k)
          for (int l = 0; l < column.depth; ++l, a += inputs)
            segments.push_back({a, filters.at(down.filters[k], across.filters[l]), inputs / PER});
        const long* table = kept_at[row.second][column.second].data();
        // Kept sums: the middle of the rows, (0, j), and that of the columns, (i, 0).
        const auto sums = [&](int i, int j) {
          return kept + (i ? P + i : j) * tiles * outputs;
        };
        const bool alone = down.role != JOINED && across.role != JOINED;
        const float* begin = (alone ? start : zeros).data();
        const float* added[] = {across.role == JOINED ? sums(i, 0) : nullptr,
                                down.role == JOINED && j > 0 ? sums(0, j) : nullptr};
        const long count = layout.tiles(down.component, across.component);
        const long depth = layout.depth(down.component, across.component);
        const auto multiply = [&](auto* c, const long* c_table, auto* c_mask) {
          using Out = std::remove_pointer_t<decltype(c)>;
          for (long n = 0; n < outputs; n += NR)
            for_blocks(count, MR, [&](long m, long tall) {
              run_microkernel<E>(
                  tall, NR, TableRows<Out>{c + n, c_table + m, offset(c_mask, n)},
                  TableStart{begin + n, {offset(added[0], n), offset(added[1], n)}, table + m},
                  segments.data(), segments.size(),
                  {PER * depth, PER, NR, PER * m * depth, n * inputs / PER});
            });
        };
        const long to = corner + (down.pixel * width + across.pixel) * outputs;
        if (i == 0 || j == 0)
          multiply(sums(i, j), table, (const float*)nullptr);
        else
          multiply(out + to, pixel_at[row.second][column.second].data(), offset(mask, to));
      }
  };
  parallel_for(pool, blocking.count(), compute, worth);
}

template <class T>
void winograd_forward(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& x,
                      const WeightView<float>& weights, const float* bias, const T* mask,
                      T* out) {
  static constexpr OutputRow output_rows[] = {
      {MIDDLE, 1, {SUM}}, {JOINED, 0, {0, 1}, 0}, {JOINED, 2, {2, 1}, 1}};
  const auto transform = [&](uint32_t* to, const TransformLayout<3>& layout) {
    input_transform<5, X_TRANSFORM>(to, layout, x, 4, 0);
  };
  winograd_conv(pool, s, X_TRANSFORM.components, transform, weights, bias, output_rows, mask, out,
                s.y_size[0], s.y_size[1], 2);
}

template <class T>
void winograd_data_grad(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& y,
                        const WeightView<float>& weights, const float* bias, const T* mask,
                        T* out) {
  static constexpr OutputRow output_rows[] = {{MIDDLE, 1, {SUM}},
                                              {JOINED, 0, {2}, 0},
                                              {ALONE, 1, {1}, 1},
                                              {JOINED, 2, {0}, 2},
                                              {ALONE, 3, {1}, 3}};
  const auto transform = [&](uint32_t* to, const TransformLayout<4>& layout) {
    input_transform<3, DATA_GRAD_TRANSFORM>(to, layout, y, 2, -1);
  };
  winograd_conv(pool, s, DATA_GRAD_TRANSFORM.components, transform, weights, bias, output_rows,
                mask, out, s.x_size[0], s.x_size[1], 4);
}

template <class T>
void winograd_weight_grad(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& x,
                          const MaskedView<T>& y, float* out) {
  using E = ComputeType<T>;
  constexpr int PER = K_PER_WORD<E>;
  const long channels = s.x_channels, outputs = s.y_channels;
  const long filter = channels * round_up(outputs, NR), size = FILTERS * FILTERS * filter;
  const TileBlocking blocking(s, 25 * channels + 9 * outputs, PER);
  const long blocks = blocking.count(), parts = std::min<long>(SPLIT_K, blocks);
  // Which numbers of which components of x each filter of an axis meets.
  struct Place {
    int component, number;
  };
  static const std::vector<Place> met[FILTERS] = {
      {{0, 0}}, {{0, 1}, {2, 1}}, {{2, 0}}, {{1, 0}}};
  float* partial = scratch<float>(Use::PARTIAL, parts * size);
  parallel_for(pool, parts, [&](long part) {
    float* sums = partial + part * size;
    const float zeros[NR] = {};  // the first block's sums begin with these
    std::vector<KSegment<E>> segments;
    const long first = blocks * part / parts;
    for (long item = first; item < blocks * (part + 1) / parts; ++item) {
      const TransformLayout<3> left(X_TRANSFORM.components, blocking[item], channels);
      const TransformLayout<3> right(Y_TRANSFORM.components, blocking[item], outputs);
      uint32_t* a = scratch<uint32_t>(Use::TRANSFORM, left.size);
      uint32_t* b = scratch<uint32_t>(Use::B, right.size);
      input_transform<5, X_TRANSFORM, PER>(a, left, x, 4, 0);
      input_transform<2, Y_TRANSFORM, PER>(b, right, y, 2, 0);
      for (int i = 0; i < FILTERS; ++i)
        for (int j = 0; j < FILTERS; ++j) {
          long step = 0;
          segments.clear();
          for (auto [p, k] : met[i])
            for (auto [q, l] : met[j]) {
              step = left.depth(p, q);
              const uint32_t* from =
                  a + left.begin[p][q] + (k * X_TRANSFORM.components[q].depth + l) * channels;
              segments.push_back({(const E*)from, b + right.begin[p][q], right.tiles(p, q)});
            }
          for (long n = 0; n < outputs; n += NR)
            for_blocks(channels, MR, [&](long m, long height) {
              float* c = sums + (i * FILTERS + j) * filter + n * channels + m * NR;
              run_microkernel<E>(height, outputs - n, StridedRows<float>{c, NR},
                                 item > first ? StartRows{c, NR} : StartRows{zeros, 0},
                                 segments.data(), segments.size(),
                                 {PER, PER * step, outputs, PER * m, n});
            });
        }
    }
    // What the filter w0 + w2 meets counts for both.
    const auto add = [&](int i, int j, int k, int l) {
      float* to = sums + (i * FILTERS + j) * filter;
      for (long n = 0; n < filter; n += LANES)
        vec_f32(to + n) += vec_f32(sums + (k * FILTERS + l) * filter + n);
    };
    for (int j = 0; j < FILTERS; ++j) add(0, j, SUM, j), add(2, j, SUM, j);
    for (int i = 0; i < SUM; ++i) add(i, 0, i, SUM), add(i, 2, i, SUM);
  });
  reduce_split_k(pool, s, partial, parts, size, out, [&](long i, long n) {
    const long tap = i / channels;
    return (tap / SUM * FILTERS + tap % SUM) * filter + n * channels + i % channels * NR;
  });
}

}  // namespace
