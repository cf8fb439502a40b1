// Scratch memory of a thread: allocated once, kept between calls, one buffer for each use.

#pragma once

#include <cstdint>
#include <vector>

namespace {

enum class Use {
  WEIGHTS,     // packed weights, and the bias before them
  A,           // the packed left operand, or a padded tile
  B,           // the packed right operand
  C,           // sums before their epilogue
  RAW,         // rows before they are packed
  PARTIAL,     // partial sums of a split K
  FILTER,      // sums of filters before they are rounded
  TRANSFORM,   // the transform domain
  COUNT
};

// Room for `count` of T, aligned to a cache line. A vector may be read from its last element on.
template <class T>
T* scratch(Use use, long count) {
  thread_local std::vector<char> kept[int(Use::COUNT)];
  std::vector<char>& bytes = kept[int(use)];
  const long size = count * sizeof(T) + 128;
  if (long(bytes.size()) < size) bytes.resize(size);
  return (T*)(((uintptr_t)bytes.data() + 63) & ~uintptr_t(63));
}

}  // namespace
