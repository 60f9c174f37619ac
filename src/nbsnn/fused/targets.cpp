// The passes compiled for each instruction set that this processor family may have; `passes_of` picks at run time.
#include "passes.h"

#include <cstring>

namespace nbsnn_fused {
namespace {

#define NBSNN_VB 16
namespace baseline {
#include "passes.inc"
}
#undef NBSNN_VB

#if defined(__x86_64__)
#define NBSNN_VB 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#include "passes.inc"
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef NBSNN_VB

#define NBSNN_VB 64
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif
namespace avx512 {
#include "passes.inc"
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef NBSNN_VB
#endif

}  // namespace

bool has_target(int target) {
#if defined(__x86_64__)
  if (target == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (target == 2)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
#endif
  return target == 0;
}

const Passes& passes_of(int target) {
#if defined(__x86_64__)
  if (target == 2) return avx512::kPasses;
  if (target == 1) return avx2::kPasses;
#endif
  return baseline::kPasses;
}

}  // namespace nbsnn_fused
