// The kernel for AVX-512.
#include "kernel.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,bmi,bmi2,popcnt,prefer-vector-width=512")
#endif
#define NBSNN_VB 64
#include "kernel.inc"
#include "end_target.inc"

namespace nbsnn {
const Kernel kAvx512 = kKernel;
}  // namespace nbsnn
#endif
