// Dot products and AMX tiles without their instructions (emulated.py), in the place of immintrin.h.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

namespace {
template <int BYTES>
struct Lanes {
  int32_t of[BYTES / 4];
};
#define NBSNN_SAME_LANES(name, lane)                                                      \
  template <class V>                                                                      \
  V name(const V& a, const V& b, const V& c) {                                            \
    V y;                                                                                  \
    for (size_t i = 0; i < sizeof(V) / 4; ++i) y.of[i] = lane(a.of[i], b.of[i], c.of[i]); \
    return y;                                                                             \
  }
int32_t dot_lane(int32_t sum, int32_t counts, int32_t weights) {
  for (int i = 0; i < 4; ++i) sum += static_cast<uint8_t>(counts >> 8 * i) * static_cast<int8_t>(weights >> 8 * i);
  return sum;
}
int16_t half(int32_t x, int i) { return static_cast<int16_t>(x >> 16 * i); }
int32_t both(int low, int high) { return static_cast<int32_t>(static_cast<uint16_t>(low) | static_cast<uint32_t>(high) << 16); }
int32_t pairs_lane(int32_t sums, int32_t counts, int32_t weights) {
  int y[2];
  for (int i = 0; i < 2; ++i) {
    const int32_t sum = dot_lane(0, counts >> 16 * i & 0xffff, weights >> 16 * i & 0xffff);
    y[i] = half(sums, i) + std::clamp(sum, -32768, 32767);
  }
  return both(y[0], y[1]);
}
int32_t sum_lane(int32_t x, int32_t y, int32_t) { return x + y; }
int32_t widen_lane(int32_t x, int32_t, int32_t) { return half(x, 0) + half(x, 1); }
NBSNN_SAME_LANES(add_dots, dot_lane)
NBSNN_SAME_LANES(add_pairs, pairs_lane)
NBSNN_SAME_LANES(add_sums, sum_lane)
NBSNN_SAME_LANES(widen, widen_lane)
template <int BYTES>
Lanes<BYTES> load_lanes(const void* from) {
  Lanes<BYTES> x;
  std::memcpy(&x, from, BYTES);
  return x;
}
template <int BYTES>
Lanes<BYTES> each_lane(int32_t word) {
  Lanes<BYTES> x;
  for (int32_t& lane : x.of) lane = word;
  return x;
}
template <class V>
void store_lanes(void* to, const V& x) {
  std::memcpy(to, &x, sizeof x);
}
thread_local uint8_t tiles[8][16][64];
void load_tile(int tile, const void* from, size_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, 64);
}
void store_tile(int tile, void* to, size_t stride) {
  for (int row = 0; row < 16; ++row) std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], 64);
}
void multiply_tiles(int sums, int weights, int words) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) {
      int32_t sum, w, x;
      std::memcpy(&sum, tiles[sums][row] + 4 * column, 4);
      for (int k = 0; k < 16; ++k) {
        std::memcpy(&w, tiles[weights][row] + 4 * k, 4), std::memcpy(&x, tiles[words][k] + 4 * column, 4);
        sum = dot_lane(sum, x, w);
      }
      std::memcpy(tiles[sums][row] + 4 * column, &sum, 4);
    }
}
}  // namespace
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig(shapes) (void)shapes
#define _tile_release()
#define _tile_zero(tile) std::memset(tiles[tile], 0, 1024)
#define _tile_loadd load_tile
#define _tile_stored store_tile
#define _tile_dpbsud multiply_tiles
