// The kernel for AVX-512 with VBMI, which permutes tables of 64 bytes.
#include "kernel.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,bmi,bmi2,popcnt,prefer-vector-width=512")
#endif
#define NBSNN_VB 64
#define NBSNN_WIDE
#include "kernel.inc"
#include "end_target.inc"

namespace nbsnn {
const Kernel kAvx512Vbmi = kKernel;
}  // namespace nbsnn
#endif
