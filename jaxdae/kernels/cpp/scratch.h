// Memory of a thread.

#pragma once

#include <cstdint>
#include <vector>

namespace {

// Memory of a thread that is kept between calls, by its use.
enum Use { MATRIX, LEFT, RIGHT, SUMS, RAW, TOTALS, COLUMNS, PLANES, USES };
template <class T>
T* memory(Use use, long count) {
  thread_local std::vector<char> kept[USES];
  const long size = count * sizeof(T) + 128;  // a vector may be read from its last element on
  if (long(kept[use].size()) < size) kept[use].resize(size);
  return (T*)(((uintptr_t)kept[use].data() + 63) & ~uintptr_t(63));
}

}  // namespace
