// The handlers of layers, for one type of element.

#include "select.h"

namespace {

typedef ELEMENT Element;  // of the images, for which this is compiled: float or bfloat16

// As jaxdae.native's `_sizes` says it: images and grids come without their shapes.
Geometry geometry(ffi::Span<const int64_t> n) {
  return {n[0], {n[1], n[2]}, {n[3], n[4]}, n[5], {n[6], n[7]}, {n[8], n[9]}, n[10], n[11],
          n[12] != 0};
}

ffi::Error gather(ffi::ThreadPool pool, ffi::AnyBuffer matrix, ffi::AnyBuffer x,
                  ffi::AnyBuffer bias, ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y,
                  ffi::Result<ffi::AnyBuffer> y, ffi::Span<const int64_t> sizes) {
  const Geometry g = geometry(sizes);
  run_gather<Element>(pool, g, matrix, x, bias, gate_x, gate_y, y);
  return ffi::Error::Success();
}

ffi::Error scatter(ffi::ThreadPool pool, ffi::AnyBuffer matrix, ffi::AnyBuffer y,
                   ffi::AnyBuffer bias, ffi::AnyBuffer gate_x, ffi::AnyBuffer gate_y,
                   ffi::Result<ffi::AnyBuffer> x, ffi::Span<const int64_t> sizes) {
  const Geometry g = geometry(sizes);
  run_scatter<Element>(pool, g, matrix, y, bias, gate_x, gate_y, x);
  return ffi::Error::Success();
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
