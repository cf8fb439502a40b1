// Tiles of bfloat16 in software, for a processor that has none: put before layers.cc, with
// __AMX_BF16__ defined, this has its code for tiles computed as the instructions would. What they
// would refuse ends the process.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace tiles_in_software {

struct Tile {
  int rows, bytes;
  unsigned char data[16][64];
};
thread_local Tile tiles[8];
thread_local bool configured = false;

inline void load_config(const void* from) {
  const auto* config = (const unsigned char*)from;
  for (int i = 0; i < 8; ++i) {
    unsigned short bytes;
    std::memcpy(&bytes, config + 16 + 2 * i, 2);
    tiles[i] = {config[48 + i], bytes, {}};
    if (tiles[i].rows > 16 || bytes > 64) std::abort();
  }
  configured = true;
}
inline void load(Tile& tile, const void* from, long stride) {
  if (!configured) std::abort();
  std::memset(tile.data, 0, sizeof(tile.data));
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy(tile.data[row], (const char*)from + row * stride, tile.bytes);
}
inline void store(const Tile& tile, void* to, long stride) {
  if (!configured) std::abort();
  for (int row = 0; row < tile.rows; ++row)
    std::memcpy((char*)to + row * stride, tile.data[row], tile.bytes);
}
inline float widened(const unsigned char* number) {
  unsigned short half;
  std::memcpy(&half, number, 2);
  const unsigned bits = unsigned(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void multiply_add(Tile& sums, const Tile& a, const Tile& b) {
  if (!configured || sums.rows != a.rows || sums.bytes != b.bytes || a.bytes != 4 * b.rows)
    std::abort();
  for (int m = 0; m < sums.rows; ++m)
    for (int n = 0; n < sums.bytes / 4; ++n) {
      float sum;
      std::memcpy(&sum, sums.data[m] + 4 * n, 4);
      for (int k = 0; k < b.rows; ++k)
        for (int half = 0; half < 4; half += 2)
          sum += widened(a.data[m] + 4 * k + half) * widened(b.data[k] + 4 * n + half);
      std::memcpy(sums.data[m] + 4 * n, &sum, 4);
    }
}

}  // namespace tiles_in_software

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define syscall(...) 0  // the system grants them
#define _tile_loadconfig(from) tiles_in_software::load_config(from)
#define _tile_release() (tiles_in_software::configured = false)
#define _tile_loadd(i, from, stride) \
  tiles_in_software::load(tiles_in_software::tiles[i], from, stride)
#define _tile_stored(i, to, stride) \
  tiles_in_software::store(tiles_in_software::tiles[i], to, stride)
#define _tile_dpbf16ps(c, a, b)                                                       \
  tiles_in_software::multiply_add(tiles_in_software::tiles[c], tiles_in_software::tiles[a], \
                                  tiles_in_software::tiles[b])
