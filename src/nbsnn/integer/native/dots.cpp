#include "dots.h"

#include <cstring>

#include "processor.h"
#include "tables.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#elif defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace nbsnn {

// The body of a product for OUTPUTS outputs at a time, of the four that share a word of weights: sums of a few words by ADD, which
// WIDEN makes 32 bits of.
#define NBSNN_DOTS(NAME, TARGET, VECTOR, OUTPUTS, APART, LOAD, BROADCAST, ADD, WIDEN, PLUS, STORE)                               \
  TARGET void NAME(const DotRun& run) {                                                                                          \
    constexpr int kBytes = sizeof(VECTOR);                                                                                       \
    for (int output = 0; output < 4 * run.groups; output += OUTPUTS) {                                                           \
      const int8_t* weights = run.weights + output / 4 * run.group_stride + output % 4 * 4;                                      \
      int32_t* sums = run.sums + static_cast<size_t>(output) * run.output_stride;                                                \
      bool first = run.first;                                                                                                    \
      for (int k = 0; k < run.n; first = false) {                                                                                \
        VECTOR a[OUTPUTS][kDotStrips] = {};                                                                                      \
        for (const int end = std::min(run.n, k + APART); k < end; ++k) {                                                         \
          VECTOR x[kDotStrips];                                                                                                  \
          _Pragma("GCC unroll 4") for (int s = 0; s < kDotStrips; ++s) x[s] = LOAD(run.words + (k * kDotStrips + s) * kBytes);   \
          _Pragma("GCC unroll 4") for (int o = 0; o < OUTPUTS; ++o) {                                                            \
            int32_t four;                                                                                                        \
            std::memcpy(&four, weights + k * 16 + o * 4, 4);                                                                     \
            const VECTOR w = BROADCAST(four);                                                                                    \
            _Pragma("GCC unroll 4") for (int s = 0; s < kDotStrips; ++s) a[o][s] = ADD(a[o][s], x[s], w);                        \
          }                                                                                                                      \
        }                                                                                                                        \
        _Pragma("GCC unroll 4") for (int o = 0; o < OUTPUTS; ++o) _Pragma("GCC unroll 4") for (int s = 0; s < kDotStrips; ++s) { \
          int32_t* to = sums + static_cast<size_t>(o) * run.output_stride + static_cast<size_t>(s) * (kBytes / 4);               \
          const VECTOR sum = WIDEN(a[o][s]);                                                                                     \
          STORE(to, first ? sum : PLUS(sum, LOAD(to)));                                                                          \
        }                                                                                                                        \
      }                                                                                                                          \
    }                                                                                                                            \
  }

#define SAME(a) a

#if defined(__x86_64__)
namespace {

#define NBSNN_AVX2 __attribute__((target("avx2")))
#define NBSNN_AVX512 __attribute__((target("avx512f,avx512bw")))
#define NBSNN_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define LOAD_256(p) _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
#define STORE_256(p, x) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x)
#define PAIRS_256(a, x, w) _mm256_add_epi16(a, _mm256_maddubs_epi16(x, w))
#define WIDEN_256(a) _mm256_madd_epi16(a, _mm256_set1_epi16(1))
#define PAIRS_512(a, x, w) _mm512_add_epi16(a, _mm512_maddubs_epi16(x, w))
#define WIDEN_512(a) _mm512_madd_epi16(a, _mm512_set1_epi16(1))
NBSNN_DOTS(pairs_256, NBSNN_AVX2, __m256i, 2, run.apart, LOAD_256, _mm256_set1_epi32, PAIRS_256, WIDEN_256, _mm256_add_epi32,
           STORE_256)
NBSNN_DOTS(pairs_512, NBSNN_AVX512, __m512i, 4, run.apart, _mm512_loadu_si512, _mm512_set1_epi32, PAIRS_512, WIDEN_512,
           _mm512_add_epi32, _mm512_storeu_si512)
NBSNN_DOTS(dots_512, NBSNN_VNNI, __m512i, 4, run.n, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_dpbusd_epi32, SAME,
           _mm512_add_epi32, _mm512_storeu_si512)

#if __GNUC__ >= 12 || __clang_major__ >= 12  // know AVX-VNNI
#define NBSNN_AVX_VNNI __attribute__((target("avx2,avxvnni")))
NBSNN_DOTS(dots_256, NBSNN_AVX_VNNI, __m256i, 2, run.n, LOAD_256, _mm256_set1_epi32, _mm256_dpbusd_avx_epi32, SAME,
           _mm256_add_epi32, STORE_256)
#else
constexpr auto dots_256 = pairs_256;
#endif

}  // namespace

// Tiles of 16 outputs by 16 places, which sum 16 words at a time. The system hands them to processes that ask.
#if defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define NBSNN_TILES __attribute__((target("amx-tile,amx-int8")))
namespace {

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);

// Tiles 0 to 3 have the sums of four strips, 4 the weights, 5 to 7 words.
NBSNN_TILES void dot_tiles(const DotRun& run) {
  constexpr int kStrip = 64, kWord = kDotStrips * kStrip, kDepth = 16;
  static constexpr TileShapes kShapes;  // static: compilers see no read of all of it
  _tile_loadconfig(&kShapes);
  const size_t row = run.output_stride * sizeof(int32_t);
  for (int group = 0; group < run.groups; ++group) {
    int32_t* sums = run.sums + static_cast<size_t>(group) * kDotOutputs * run.output_stride;
    const int8_t* weights = run.weights + static_cast<size_t>(group) * run.group_stride;
    if (run.first) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    } else {
      _tile_loadd(0, sums, row);
      _tile_loadd(1, sums + 16, row);
      _tile_loadd(2, sums + 32, row);
      _tile_loadd(3, sums + 48, row);
    }
    for (int k = 0; k < run.n; k += kDepth, weights += kDotOutputs * kDepth * 4) {
      const uint8_t* words = run.words + k * kWord;
      _tile_loadd(4, weights, kDepth * 4);
      _tile_loadd(5, words, kWord);
      _tile_dpbsud(0, 4, 5);
      _tile_loadd(6, words + kStrip, kWord);
      _tile_dpbsud(1, 4, 6);
      _tile_loadd(7, words + 2 * kStrip, kWord);
      _tile_dpbsud(2, 4, 7);
      _tile_loadd(5, words + 3 * kStrip, kWord);
      _tile_dpbsud(3, 4, 5);
    }
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + 16, row);
    _tile_stored(2, sums + 32, row);
    _tile_stored(3, sums + 48, row);
  }
  _tile_release();
}

bool has_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTilesAndBytes = 1u << 24 | 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTilesAndBytes) != kTilesAndBytes) return false;
  constexpr int kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  return granted;
}

}  // namespace
#else
namespace {
constexpr auto dot_tiles = dots_512;
bool has_tiles() { return false; }
}  // namespace
#endif

const DotProduct kPairs256{32, 4, 1, 2.6, has_avx2, pairs_256};
const DotProduct kPairs512{64, 4, 1, 4.7, has_avx512, pairs_512};
const DotProduct kDots256{32, 4, 1, 1.3, has_avx_vnni, dots_256};
const DotProduct kDots512{64, 4, 1, 3.2, has_vnni, dots_512};
const DotProduct kDotTiles{64, 16, 16, 0.4, has_tiles, dot_tiles};
#elif defined(__aarch64__)
namespace {

#define NBSNN_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define LOAD_128(p) vreinterpretq_s32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(p)))
#define DOT_128(a, x, w) vdotq_s32(a, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w))
NBSNN_DOTS(dots_128, NBSNN_DOTPROD, int32x4_t, 4, run.n, LOAD_128, vdupq_n_s32, DOT_128, SAME, vaddq_s32, vst1q_s32)

bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#else
  return true;  // every processor of Apple has them
#endif
}

}  // namespace

const DotProduct kDots128{16, 4, 1, 2, has_dotprod, dots_128};
#endif

Dots make_dots(const Net& net, const Node& node, size_t first, const DotProduct& product) {
  const Branch& b = node.branches[first];
  const int levels = net.nodes[static_cast<size_t>(b.source)].levels;
  size_t end = first + 1;
  while (end < node.branches.size() && node.branches[end].is_digit) ++end;
  Dots out;
  if (levels > kMostDotCount || b.lookups[kQuads].size == 0) return out;
  const int words = b.lookups[kQuads].size, depth = product.depth, outputs = product.outputs;
  out.words = static_cast<int>(round_up(words, depth));
  const size_t groups = static_cast<size_t>((node.channels + outputs - 1) / outputs);
  out.group_stride = static_cast<size_t>(out.words) * static_cast<size_t>(outputs) * 4;
  int8_t* to = reinterpret_cast<int8_t*>(out.weights.need(groups * out.group_stride));
  std::memset(to, 0, groups * out.group_stride);
  int largest = 1;
  out.total.assign(static_cast<size_t>(node.channels), 0);
  for (int output = 0; output < node.channels; ++output) {
    int64_t load = 0;
    for (int k = 0; k < words; ++k) {
      int8_t* four = to + static_cast<size_t>(output / outputs) * out.group_stride +
                     static_cast<size_t>((k / depth * outputs + output % outputs) * depth + k % depth) * 4;
      for (int i = 0; i < 4; ++i) {
        int weight = 0;
        for (size_t digit = end; digit-- > first;) weight = 16 * weight + weight_of(node.branches[digit], output, k, i);
        largest = std::max(largest, std::abs(weight));
        if (largest > kMostDotWeight) return {};
        four[i] = static_cast<int8_t>(weight);
        out.total[static_cast<size_t>(output)] += weight;
        load += std::abs(weight);
      }
    }
    out.load = std::max(out.load, load);
  }
  out.apart = INT16_MAX / (2 * std::max(2, levels) * largest);  // a byte of signed spikes is 2 at most
  out.branches = static_cast<int>(end - first);
  return out;
}

}  // namespace nbsnn
