// The FFI handlers of layers, compiled once for each element type: -DELEMENT=float or bfloat16.
//
// A bias or mask that is not there is an empty array. Images may come in any shape of as many
// elements: the attribute `shape` holds the fields of ConvShape, in order.

#include "select.h"

namespace {

typedef ELEMENT Element;

ConvShape shape_of(ffi::Span<const int64_t> n) {
  return {n[0], {n[1], n[2]}, {n[3], n[4]}, n[5],      {n[6], n[7]},
          {n[8], n[9]}, n[10], n[11],       n[12] != 0};
}

template <class T>
const T* data(ffi::AnyBuffer buffer) {
  return buffer.element_count() ? (const T*)buffer.untyped_data() : nullptr;
}

MaskedView<Element> x_view(const ConvShape& s, ffi::AnyBuffer x, ffi::AnyBuffer mask) {
  return {data<Element>(x), data<Element>(mask), s.x_size[0], s.x_size[1], s.x_channels, s.batch};
}
MaskedView<Element> y_view(const ConvShape& s, ffi::AnyBuffer y, ffi::AnyBuffer mask) {
  return {data<Element>(y), data<Element>(mask), s.y_size[0], s.y_size[1], s.y_channels, s.batch};
}

ffi::Error conv_forward(ffi::ThreadPool pool, ffi::AnyBuffer w, ffi::AnyBuffer x,
                        ffi::AnyBuffer bias, ffi::AnyBuffer x_mask, ffi::AnyBuffer y_mask,
                        ffi::Result<ffi::AnyBuffer> y, ffi::Span<const int64_t> shape) {
  const ConvShape s = shape_of(shape);
  select_forward(pool, s, x_view(s, x, x_mask), data<float>(w), data<float>(bias),
                 data<Element>(y_mask), (Element*)y->untyped_data());
  return ffi::Error::Success();
}

ffi::Error conv_data_grad(ffi::ThreadPool pool, ffi::AnyBuffer w, ffi::AnyBuffer y,
                          ffi::AnyBuffer bias, ffi::AnyBuffer x_mask, ffi::AnyBuffer y_mask,
                          ffi::Result<ffi::AnyBuffer> x, ffi::Span<const int64_t> shape) {
  const ConvShape s = shape_of(shape);
  select_data_grad(pool, s, y_view(s, y, y_mask), data<float>(w), data<float>(bias),
                   data<Element>(x_mask), (Element*)x->untyped_data());
  return ffi::Error::Success();
}

ffi::Error conv_weight_grad(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer y,
                            ffi::AnyBuffer /*bias*/, ffi::AnyBuffer x_mask, ffi::AnyBuffer y_mask,
                            ffi::Result<ffi::AnyBuffer> w, ffi::Span<const int64_t> shape) {
  const ConvShape s = shape_of(shape);
  select_weight_grad(pool, s, x_view(s, x, x_mask), y_view(s, y, y_mask),
                     (float*)w->untyped_data());
  return ffi::Error::Success();
}

ffi::Error conv_bias_grad(ffi::ThreadPool pool, ffi::AnyBuffer y,
                          ffi::Result<ffi::AnyBuffer> bias) {
  const long channels = bias->element_count();
  bias_grad(pool, data<Element>(y), y.element_count() / channels, channels,
            (float*)bias->untyped_data());
  return ffi::Error::Success();
}

}  // namespace

extern "C" int jaxdae_uses_amx() { return use_amx<Element>(); }

// Two factors, a bias, the masks of x and of y.
static auto layer_signature() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<ffi::Span<const int64_t>>("shape");
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdae_conv_forward, conv_forward, layer_signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdae_conv_data_grad, conv_data_grad, layer_signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdae_conv_weight_grad, conv_weight_grad, layer_signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxdae_conv_bias_grad, conv_bias_grad,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());
