// The instruction sets that this processor family may have.
#include "targets.h"

#include "dots.h"
#include "kernel.h"
#include "processor.h"

namespace nbsnn {
namespace {

struct Target {
  const char* name;
  const Kernel* kernel;
  const DotProduct* dots;  // null: none
  bool (*exists)();
};

bool always() { return true; }

#if defined(__x86_64__)
constexpr Target kTargets[] = {
    {"baseline", &kBaseline, nullptr, always},       {"avx2", &kAvx2, &kPairs256, has_avx2},
    {"avxvnni", &kAvx2, &kDots256, has_avx2},        {"avx512", &kAvx512, &kPairs512, has_avx512},
    {"avx512vnni", &kAvx512, &kDots512, has_avx512}, {"avx512vbmi", &kAvx512Vbmi, &kDots512, has_vbmi},
    {"amx", &kAvx512Vbmi, &kDotTiles, has_vbmi},
};
#elif defined(__aarch64__)
constexpr Target kTargets[] = {{"baseline", &kBaseline, nullptr, always}, {"dotprod", &kBaseline, &kDots128, always}};
#else
constexpr Target kTargets[] = {{"baseline", &kBaseline, nullptr, always}};
#endif

constexpr int kCount = sizeof(kTargets) / sizeof(kTargets[0]);

}  // namespace

const char* target_name(int target) { return target >= 0 && target < kCount ? kTargets[target].name : nullptr; }

bool has_target(int target) {
  if (target < 0 || target >= kCount) return false;
  const Target& found = kTargets[target];
  return found.exists() && (!found.dots || found.dots->exists());
}

bool permutes_pairs() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

const Kernel& kernel_of(int target) { return *kTargets[target].kernel; }
const DotProduct* dots_of(int target) { return kTargets[target].dots; }

}  // namespace nbsnn
