// The handlers of Adam and of normal numbers.

#include "adam.h"
#include "threefry_normal.h"

namespace {

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
