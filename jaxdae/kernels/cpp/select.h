// Which algorithm for which shape.

#pragma once

#include "bias_grad.h"
#include "conv_few_outputs.h"
#include "conv_implicit_gemm.h"
#include "conv_one_channel.h"
#include "conv_row_amx.h"
#include "gemm.h"
#include "weight_grad_amx.h"
#include "winograd_conv.h"

namespace {

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

}  // namespace
