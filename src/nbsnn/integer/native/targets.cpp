// The kernel compiled for each instruction set that this processor family may have; `kernel_of` picks at run time.
//
// NBSNN_FAST_BUILD, for whoever works on the kernel, compiles AVX2 alone, which then also runs in place of the others.
#include "targets.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif


namespace nbsnn {
namespace {

struct alignas(32) Octet {
  uint16_t index[8];  // which bits of the row's number are set
  int n;              // how many
};

struct Octets {
  Octet row[256];
  constexpr Octets() : row{} {
    for (int mask = 0; mask < 256; ++mask)
      for (int bit = 0; bit < 8; ++bit)
        if (mask >> bit & 1) row[mask].index[row[mask].n++] = static_cast<uint16_t>(bit);
  }
};

constexpr Octets kOctets;

alignas(64) constexpr int8_t kPopcount[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};

#if !defined(NBSNN_FAST_BUILD)  // baseline
#define NBSNN_VB 16
namespace baseline {
#include "kernel.inc"
#if defined(__x86_64__)  // SSE2 has no byte shuffle
constexpr Kernel kKernel{kVec, pack, run_tile, nullptr, nullptr};
#else
#include "lookups.inc"
#include "gather.inc"
#include "constants.inc"
#include "planes.inc"
constexpr Kernel kKernel{kVec, pack, run_tile, run_planes, run_records};
#endif
}
#undef NBSNN_VB
#endif

#if defined(__x86_64__)
#define NBSNN_VB 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
namespace avx2 {
#include "kernel.inc"
#include "lookups.inc"
#include "gather.inc"
#include "constants.inc"
#include "planes.inc"
constexpr Kernel kKernel{kVec, pack, run_tile, run_planes, run_records};
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef NBSNN_VB

#if !defined(NBSNN_FAST_BUILD)
#define NBSNN_VB 64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,bmi,bmi2,popcnt,prefer-vector-width=512")
#endif
namespace avx512 {
#include "kernel.inc"
#include "lookups.inc"
#include "gather.inc"
#include "constants.inc"
#include "planes.inc"
constexpr Kernel kKernel{kVec, pack, run_tile, run_planes, run_records};
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef NBSNN_VB
#endif
#endif

}  // namespace

bool has_target(int target) {
#if defined(__x86_64__)
  if (target == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (target == 2)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
#endif
  return target == 0;
}

const Kernel& kernel_of(int target) {
#if defined(__x86_64__) && !defined(NBSNN_FAST_BUILD)
  if (target == 2) return avx512::kKernel;
#endif
#if defined(__x86_64__)
  if (target == 1) return avx2::kKernel;
#endif
#if !defined(NBSNN_FAST_BUILD)
  return baseline::kKernel;
#else
  return avx2::kKernel;
#endif
}

}  // namespace nbsnn
