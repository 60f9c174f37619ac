// The instruction sets that this processor family may have; `kernel_of` picks one at run time.
#include "targets.h"

#include "kernel.h"

namespace nbsnn {

bool has_target(int target) {
#if defined(__x86_64__)
  if (target == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (target == 3 && !__builtin_cpu_supports("avx512vbmi")) return false;
  if (target == 2 || target == 3)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
#endif
  return target == 0;
}

bool permutes_pairs() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

const Kernel& kernel_of(int target) {
#if defined(__x86_64__)
  if (target == 3) return kAvx512Vbmi;
  if (target == 2) return kAvx512;
  if (target == 1) return kAvx2;
#endif
  (void)target;
  return kBaseline;
}

}  // namespace nbsnn
