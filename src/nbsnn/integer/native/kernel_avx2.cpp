// The kernel for AVX2 with FMA.
#include "kernel.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
#define NBSNN_VB 32
#include "kernel.inc"
#include "end_target.inc"

namespace nbsnn {
const Kernel kAvx2 = kKernel;
}  // namespace nbsnn
#endif
