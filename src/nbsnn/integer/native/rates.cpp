// Upper limits of this processor: how many synapses a second each kind of instruction handles, on one core, with operands in the
// first cache. `nbsnn bench --layers` compares the layers of a network with them.
//
// Each kind runs what the inner loop of a matrix product would: two vectors of weights (or tables) meet four of spikes (or
// indices) in eight sums. A look-up reads, for each byte lane, a table of the sums of four weights at the index that four spikes
// make, and adds it; a dot product multiplies 8-bit numbers.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "processor.h"

#define NBSNN_API extern "C" __attribute__((visibility("default")))

namespace nbsnn {
namespace {

constexpr int kBytes = 4096;  // of each operand
constexpr int kPasses = 400;  // over the operands: a fraction of a millisecond
constexpr int kRepeats = 40;  // of which the fastest counts

struct Operands {
  alignas(64) uint8_t spikes[kBytes];
  alignas(64) int8_t weights[kBytes];
};

struct Rate {
  const char* name;
  int synapses;  // that one step handles
  int bytes;     // of a vector
  bool (*exists)();
  void (*run)(const Operands&, int passes);
};

// A function `name` of (operands, passes). STEP makes of a sum `a`, spikes `x` and weights `w` the next sum; every pass reads the
// spikes once. The empty assembly hides from the compiler that all passes compute the same.
#define NBSNN_KIND(name, TARGET, Vector, Sum, LOAD, WEIGHTS, ZERO, STEP)                                             \
  TARGET __attribute__((noinline)) void name(const Operands& operands, int passes) {                                 \
    constexpr int kSize = static_cast<int>(sizeof(Vector));                                                          \
    Sum sums[8] = {ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO};                                                  \
    for (int pass = 0; pass < passes; ++pass) {                                                                      \
      for (int at = 0; at < kBytes; at += 4 * kSize) {                                                               \
        const uint8_t* s = operands.spikes + at;                                                                     \
        const Vector spikes[4] = {LOAD(s), LOAD(s + kSize), LOAD(s + 2 * kSize), LOAD(s + 3 * kSize)};               \
        const Vector weights[2] = {WEIGHTS(operands.weights + at), WEIGHTS(operands.weights + at + kSize)};          \
        _Pragma("GCC unroll 8") for (int k = 0; k < 8; ++k) sums[k] = STEP(sums[k], spikes[k & 3], weights[k >> 2]); \
      }                                                                                                              \
      asm volatile(""                                                                                                \
                   : "+" NBSNN_REGISTER(sums[0]), "+" NBSNN_REGISTER(sums[1]), "+" NBSNN_REGISTER(sums[2]),          \
                     "+" NBSNN_REGISTER(sums[3])                                                                     \
                   :                                                                                                 \
                   : "memory");                                                                                      \
      asm volatile(""                                                                                                \
                   : "+" NBSNN_REGISTER(sums[4]), "+" NBSNN_REGISTER(sums[5]), "+" NBSNN_REGISTER(sums[6]),          \
                     "+" NBSNN_REGISTER(sums[7])                                                                     \
                   :                                                                                                 \
                   : "memory");                                                                                      \
    }                                                                                                                \
  }

#if defined(__x86_64__)
#define NBSNN_REGISTER "v"
#define NBSNN_256 __attribute__((target("avx2,fma")))
#define NBSNN_512 __attribute__((target("avx512f,avx512bw")))
#define NBSNN_VBMI __attribute__((target("avx512f,avx512bw,avx512vbmi")))
#define NBSNN_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

#define LOAD_256(p) _mm256_load_si256(reinterpret_cast<const __m256i*>(p))
#define TABLE_256(p) _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)))
#define LOOK_UP_256(a, x, w) _mm256_add_epi8(a, _mm256_shuffle_epi8(w, x))
#define PAIRS_256(a, x, w) _mm256_add_epi16(a, _mm256_maddubs_epi16(x, w))
#define DOT_256(a, x, w) _mm256_dpbusd_epi32(a, x, w)
#define FLOAT_256(p) _mm256_load_ps(reinterpret_cast<const float*>(p))
#define MULTIPLY_256(a, x, w) _mm256_fmadd_ps(x, w, a)
NBSNN_KIND(look_up_256, NBSNN_256, __m256i, __m256i, LOAD_256, TABLE_256, _mm256_setzero_si256(), LOOK_UP_256)
NBSNN_KIND(pairs_256, NBSNN_256, __m256i, __m256i, LOAD_256, LOAD_256, _mm256_setzero_si256(), PAIRS_256)
NBSNN_KIND(dot_256, NBSNN_VNNI, __m256i, __m256i, LOAD_256, LOAD_256, _mm256_setzero_si256(), DOT_256)
NBSNN_KIND(multiply_256, NBSNN_256, __m256, __m256, FLOAT_256, FLOAT_256, _mm256_setzero_ps(), MULTIPLY_256)

#define LOAD_512(p) _mm512_load_si512(p)
#define TABLE_512(p) _mm512_maskz_broadcast_i32x4(0xffff, _mm_load_si128(reinterpret_cast<const __m128i*>(p)))
#define LOOK_UP_512(a, x, w) _mm512_add_epi8(a, _mm512_shuffle_epi8(w, x))
#define PAIRS_512(a, x, w) _mm512_add_epi16(a, _mm512_maddubs_epi16(x, w))
#define DOT_512(a, x, w) _mm512_dpbusd_epi32(a, x, w)
#define FLOAT_512(p) _mm512_load_ps(p)
#define MULTIPLY_512(a, x, w) _mm512_fmadd_ps(x, w, a)
NBSNN_KIND(look_up_512, NBSNN_512, __m512i, __m512i, LOAD_512, TABLE_512, _mm512_setzero_si512(), LOOK_UP_512)
#define LOOK_UP_64(a, x, w) _mm512_add_epi8(a, _mm512_permutexvar_epi8(x, w))
NBSNN_KIND(look_up_64, NBSNN_VBMI, __m512i, __m512i, LOAD_512, LOAD_512, _mm512_setzero_si512(), LOOK_UP_64)
NBSNN_KIND(pairs_512, NBSNN_512, __m512i, __m512i, LOAD_512, LOAD_512, _mm512_setzero_si512(), PAIRS_512)
NBSNN_KIND(dot_512, NBSNN_VNNI, __m512i, __m512i, LOAD_512, LOAD_512, _mm512_setzero_si512(), DOT_512)
NBSNN_KIND(multiply_512, NBSNN_512, __m512, __m512, FLOAT_512, FLOAT_512, _mm512_setzero_ps(), MULTIPLY_512)

#if __GNUC__ >= 12 || __clang_major__ >= 12  // know AVX-VNNI
#define NBSNN_AVX_VNNI __attribute__((target("avx2,avxvnni")))
#define DOT_VEX(a, x, w) _mm256_dpbusd_avx_epi32(a, x, w)
NBSNN_KIND(dot_vex, NBSNN_AVX_VNNI, __m256i, __m256i, LOAD_256, LOAD_256, _mm256_setzero_si256(), DOT_VEX)
#else
constexpr auto dot_vex = pairs_256;
#endif

constexpr Rate kRates[] = {
    {"look-up vpshufb 256", 128, 32, has_avx2, look_up_256}, {"dot vpmaddubsw 256", 32, 32, has_avx2, pairs_256},
    {"float fma 256", 8, 32, has_avx2, multiply_256},        {"look-up vpshufb 512", 256, 64, has_avx512, look_up_512},
    {"dot vpmaddubsw 512", 64, 64, has_avx512, pairs_512},   {"float fma 512", 16, 64, has_avx512, multiply_512},
    {"dot vpdpbusd 256", 32, 32, has_vnni, dot_256},         {"dot vpdpbusd 512", 64, 64, has_vnni, dot_512},
    {"dot vpdpbusd avx", 32, 32, has_avx_vnni, dot_vex},     {"wide vpermb 512", 384, 64, has_vbmi, look_up_64},
};
#elif defined(__aarch64__)
#define NBSNN_REGISTER "w"
#define LOAD_128(p) vld1q_u8(reinterpret_cast<const uint8_t*>(p))
#define LOOK_UP_128(a, x, w) vaddq_u8(a, vqtbl1q_u8(w, x))
#define FLOAT_128(p) vld1q_f32(reinterpret_cast<const float*>(p))
#define MULTIPLY_128(a, x, w) vfmaq_f32(a, x, w)
NBSNN_KIND(look_up_128, , uint8x16_t, uint8x16_t, LOAD_128, LOAD_128, vdupq_n_u8(0), LOOK_UP_128)
NBSNN_KIND(multiply_128, , float32x4_t, float32x4_t, FLOAT_128, FLOAT_128, vdupq_n_f32(0), MULTIPLY_128)

bool always() { return true; }

constexpr Rate kRates[] = {{"look-up tbl 128", 64, 16, always, look_up_128}, {"float fmla 128", 4, 16, always, multiply_128}};
#else
constexpr Rate kRates[] = {{nullptr, 0, 0, nullptr, nullptr}};
#endif

constexpr int kCount = sizeof(kRates) / sizeof(kRates[0]);

}  // namespace
}  // namespace nbsnn

// The name of a kind of instruction, "look-up", "wide", "dot" or "float" first, then the instruction and the bits of its vectors; null
// beyond the last.
NBSNN_API const char* nbsnn_rate_name(int kind) { return kind >= 0 && kind < nbsnn::kCount ? nbsnn::kRates[kind].name : nullptr; }

// Synapses a second of a kind: with spikes for look-ups, with 8-bit numbers for dot products. 0 if this processor lacks it.
NBSNN_API double nbsnn_rate(int kind) {
  using namespace nbsnn;
  if (kind < 0 || kind >= kCount || !kRates[kind].name || !kRates[kind].exists()) return 0;
  const Rate& rate = kRates[kind];
  static Operands operands;  // zero: sums of floats stay normal
  for (int i = 0; i < kBytes; ++i)
    operands.spikes[i] = static_cast<uint8_t>(i * 7 & 15), operands.weights[i] = static_cast<int8_t>(i % 3 - 1);
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    rate.run(operands, kPasses);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return 2.0 * kPasses * (kBytes / rate.bytes) * rate.synapses / best;
}
