// Which instructions this processor has.
#pragma once

namespace nbsnn {

#if defined(__x86_64__)
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"); }
inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}
inline bool has_vbmi() { return has_avx512() && __builtin_cpu_supports("avx512vbmi"); }
inline bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#if __GNUC__ >= 12 || __clang_major__ >= 12  // know AVX-VNNI
inline bool has_avx_vnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
#else
inline bool has_avx_vnni() { return false; }
#endif
#endif

}  // namespace nbsnn
