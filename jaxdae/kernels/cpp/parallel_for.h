// A parallel loop on the threads of XLA's pool, and even splits of a range into blocks.
//
// What a loop computes never depends on how many threads there are: work is cut by shapes alone.

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

// A number of the calling thread, the same in every call.
inline long thread_number() {
  static std::atomic<long> given{0};
  thread_local const long number = given++;
  return number;
}

// Calls f(0) to f(count - 1). Each thread begins in a range of its own, the same from call to call,
// where its caches hold what it wrote before; then it helps the others. Pass `worth` = false for
// work that is done before another thread has woken up.
inline void parallel_for(ffi::ThreadPool& pool, long count, const std::function<void(long)>& f,
                         bool worth = true) {
  struct Job {
    long count, ranges;
    std::unique_ptr<std::atomic<long>[]> next;
    std::atomic<long> done{0};
    const std::function<void(long)>* f;
    void work() {
      long finished = 0;
      for (long r = 0, own = thread_number(); r < ranges; ++r) {
        const long range = (own + r) % ranges, end = count * (range + 1) / ranges;
        for (long i; (i = next[range]++) < end; ++finished) (*f)(i);
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
  job->count = count, job->ranges = threads, job->f = &f;
  job->next = std::make_unique<std::atomic<long>[]>(threads);
  for (long r = 0; r < threads; ++r) job->next[r] = count * r / threads;
  // A thread that comes too late finds nothing to do, and does not touch f, which is gone by then.
  for (long i = 1; i < threads; ++i) pool.Schedule([job] { job->work(); });
  job->work();
  // Spin first; with more threads than processors the last one must be let in.
  for (long turn = 0; job->done < count; ++turn)
    if (turn < 256)
      pause();
    else
      std::this_thread::yield();
}

// The size of the largest of the fewest even blocks of at most `most` that make up `count`.
inline long block_size(long count, long most) {
  const long blocks = std::max(1L, ceil_div(count, most));
  return ceil_div(count, blocks);
}

// f(first, size) for each of these blocks.
template <class F>
inline void for_blocks(long count, long most, const F& f) {
  const long blocks = ceil_div(count, most);
  for (long block = 0, first = 0, end; block < blocks; ++block, first = end)
    end = count * (block + 1) / blocks, f(first, end - first);
}

}  // namespace
