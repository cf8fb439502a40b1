// Work shared by the threads of XLA's pool.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "simd.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
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

}  // namespace
