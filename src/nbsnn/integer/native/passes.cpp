// What a call does to its images and its sums, each in one pass: a call of torch's operations takes as long as a small image does.
#include <cstdint>
#include <cstring>

// No multiplication and addition is contracted, so that numbers are the same bits as torch's.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#define NBSNN_API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kFew = 4;
typedef float floats __attribute__((vector_size(kFew * sizeof(float))));
typedef int32_t integers __attribute__((vector_size(kFew * sizeof(int32_t))));

// The integers from low to high that images become.
struct Grid {
  floats scale, low, high, least, most;  // the last two are where images are refused

  Grid(float unit, float from, float to, float slack)
      : scale(floats{} + unit), low(floats{} + from), high(floats{} + to), least(low - slack), most(high + slack) {}

  // Notes in `beyond` which numbers are refused; so is NaN, for which no comparison holds.
  void round(const float* in, int32_t* out, integers& beyond) const {
    constexpr float kWhole = 8388608;  // 2^23: a float beyond it is an integer
    floats x;
    std::memcpy(&x, in, sizeof x);
    x *= scale;
    const integers sign = (integers)x & INT32_MIN;
    const floats size = (floats)((integers)x & INT32_MAX), rounded = (floats)((integers)((size + kWhole) - kWhole) | sign);
    x = size < kWhole ? rounded : x;
    beyond |= ~((x >= least) & (x <= most));
    x = x > low ? x : low;
    x = x < high ? x : high;
    const integers whole = __builtin_convertvector(x, integers);
    std::memcpy(out, &whole, sizeof whole);
  }
};

}  // namespace

// Writes round(image · scale), ties to even, at least `low` and at most `high`; returns 1 if no number was beyond these bounds by more
// than `slack`, nor NaN. The scale is a power of two, and the bounds are below 2^24.
NBSNN_API int nbsnn_round(const float* images, int64_t n, float scale, float low, float high, float slack, int32_t* out) {
  const Grid grid(scale, low, high, slack);
  integers beyond{};
  int64_t i = 0;
  for (; i + kFew <= n; i += kFew) grid.round(images + i, out + i, beyond);
  if (i < n) {
    float last[kFew] = {};
    int32_t whole[kFew];
    const size_t left = static_cast<size_t>(n - i);
    std::memcpy(last, images + i, left * sizeof(float));
    grid.round(last, whole, beyond);
    std::memcpy(out + i, whole, left * sizeof(int32_t));
  }
  return !(beyond[0] | beyond[1] | beyond[2] | beyond[3]);
}

// Whether all pixels are from low to high.
NBSNN_API int nbsnn_within(const int32_t* pixels, int64_t n, int32_t low, int32_t high) {
  int32_t beyond = 0;
  for (int64_t i = 0; i < n; ++i) beyond |= (pixels[i] < low) | (pixels[i] > high);
  return !beyond;
}

// Writes bias + sum · factor, [batch, outputs], computed in double precision.
NBSNN_API void nbsnn_logits(const int64_t* sums, int64_t batch, int64_t outputs, const double* bias, const double* factor,
                            float* out) {
  for (int64_t i = 0; i < batch; ++i)
    for (int64_t o = 0; o < outputs; ++o) *out++ = static_cast<float>(bias[o] + static_cast<double>(*sums++) * factor[o]);
}
