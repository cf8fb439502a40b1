// Which algorithm computes which shape: see the table in docs/kernels.md.

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

// y = conv(x, w) + bias.
template <class T>
void select_forward(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& x,
                    const float* w, const float* bias, const T* mask, T* y) {
  if (s.is_dense())
    return gemm<T, float, T>(pool, s.batch, s.y_channels, s.x_channels,
                             {x.x, x.mask, s.x_channels, 1}, {w, nullptr, s.y_channels, 1}, bias,
                             mask, y);
  const WeightView<T> weights{w + s.first(), s.tap_step(),  s.x_step(),
                              s.y_step(),    s.x_channels, s.y_channels};
  const std::vector<Polyphase> components{forward_component(s)};
  if (winograd_applies<T>(s) && !weights.in_place(s.batch * s.y_size[0] * s.y_size[1]))
    return winograd_forward(pool, s, x, (const WeightView<float>&)weights, bias, mask, y);
  auto f = few_outputs_applies<T>(s.y_channels) ? small_n_conv<T> : implicit_gemm<T>;
  if constexpr (std::is_same_v<ComputeType<T>, T>)
    if (one_channel_applies(s) && !use_amx<T>()) f = conv_one_channel<T>;
  f(pool, components, x, weights, bias, mask, y, s.batch, s.y_size[0], s.y_size[1]);
}

// x = the data gradient of y, which is also conv_transpose(y, w), + bias.
template <class T>
void select_data_grad(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& y,
                      const float* w, const float* bias, const T* mask, T* x) {
  if (s.is_dense())
    return gemm<T, float, T>(pool, s.batch, s.x_channels, s.y_channels,
                             {y.x, y.mask, s.y_channels, 1}, {w, nullptr, 1, s.y_channels}, bias,
                             mask, x);
  if (use_amx<T>() && row_amx_applies(s))
    return data_grad_rows_amx(pool, s, (const MaskedView<bfloat16>&)y, w, bias,
                              (const bfloat16*)mask, (bfloat16*)x);
  const WeightView<T> weights{w + s.first(), s.tap_step(),  s.y_step(),
                              s.x_step(),    s.y_channels, s.x_channels};
  if (winograd_applies<T>(s) && !weights.in_place(s.batch * s.y_size[0] * s.y_size[1]))
    return winograd_data_grad(pool, s, y, (const WeightView<float>&)weights, bias, mask, x);
  const std::vector<Polyphase> components = data_grad_components(s);
  const bool few = few_outputs_applies<T>(s.x_channels);
  if (few && row_streaming_applies(components, y))
    return row_streaming_conv(pool, components[0], y, weights, bias, mask, x, s.batch, s.x_size[0],
                              s.x_size[1]);
  const auto f = few ? small_n_conv<T> : implicit_gemm<T>;
  f(pool, components, y, weights, bias, mask, x, s.batch, s.x_size[0], s.x_size[1]);
}

// w = the weight gradient, patches(x)^T y.
template <class T>
void select_weight_grad(ffi::ThreadPool& pool, const ConvShape& s, const MaskedView<T>& x,
                        const MaskedView<T>& y, float* w) {
  if (s.is_dense())
    return gemm<T, T, float>(pool, s.x_channels, s.y_channels, s.batch,
                             {x.x, x.mask, 1, s.x_channels}, {y.x, y.mask, s.y_channels, 1},
                             nullptr, nullptr, w);
  if (use_amx<T>())
    return weight_grad_amx(pool, s, (const MaskedView<bfloat16>&)x,
                           (const MaskedView<bfloat16>&)y, w);
  if (winograd_applies<T>(s)) return winograd_weight_grad(pool, s, x, y, w);
  if (one_channel_applies(s)) return weight_grad_one_channel(pool, s, x, y, w);
  weight_grad<T>(pool, s, x, y, w);
}

}  // namespace
