// The FFI handlers of Adam's step and of normal numbers: float32 only, so compiled once.

#include "adam.h"
#include "threefry_normal.h"

namespace {

// Arguments: the scales, then of all leaves the gradients, means and squares, of all pairs the
// averages `cross` and `square`, and the parameters if the update is added to them. `pairs` holds
// the indices of the pairs' kernels, and then of their biases. Results come in the same order.
ffi::Error adam_step(ffi::ThreadPool pool, ffi::AnyBuffer scales, ffi::RemainingArgs arguments,
                     ffi::RemainingRets results, ffi::Span<const int64_t> pair_indices) {
  const long pair_count = pair_indices.size() / 2, count = (results.size() - 2 * pair_count) / 3;
  const auto in = [&](long i) {
    return (const float*)arguments.get<ffi::AnyBuffer>(i)->untyped_data();
  };
  const auto out = [&](long i) {
    return (float*)(*results.get<ffi::AnyBuffer>(i))->untyped_data();
  };
  const long params = 3 * count + 2 * pair_count;
  std::vector<Leaf> leaves;
  for (long i = 0; i < count; ++i) {
    const long size = arguments.get<ffi::AnyBuffer>(i)->element_count();
    leaves.push_back({in(i), in(count + i), in(2 * count + i),
                      long(arguments.size()) > params ? in(params + i) : nullptr, out(i),
                      out(count + i), out(2 * count + i), size});
  }
  std::vector<CentredPair> pairs;
  for (long i = 0; i < pair_count; ++i) {
    const long cross = 3 * count + i, square = cross + pair_count;
    pairs.push_back({pair_indices[i], pair_indices[pair_count + i], in(cross), in(square),
                     out(cross), out(square)});
  }
  AdamScales values;
  std::memcpy(&values, scales.untyped_data(), sizeof(values));
  adam(pool, values, leaves, pairs);
  return ffi::Error::Success();
}

ffi::Error normal_numbers(ffi::ThreadPool pool, ffi::AnyBuffer keys,
                          ffi::Result<ffi::AnyBuffer> numbers) {
  const long rows = keys.element_count() / 2;
  if (rows)
    normal_rows(pool, (const uint32_t*)keys.untyped_data(), rows, numbers->element_count() / rows,
                (float*)numbers->untyped_data());
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
