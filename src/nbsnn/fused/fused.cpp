// The C interface of the fused passes: addresses in, sums and tensors out. A tensor is cut into blocks, which threads draw from a
// counter; sums of blocks are added in their order. Functions return 0, or -1 if memory does not suffice, with nothing written
// that the caller may use.
#include "passes.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define NBSNN_API extern "C" __attribute__((visibility("default")))

namespace nbsnn_fused {
namespace {

// GOMP_parallel of the OpenMP library that torch uses: its threads are awake after an operation of torch. Null: own threads.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<Parallel> parallel{nullptr};

int best_target() {
  int best = 0;
  for (int target = 1; target < kTargets; ++target)
    if (has_target(target)) best = target;
  return best;
}
std::atomic<int> target{best_target()};

const Passes& passes() { return passes_of(target.load(std::memory_order_relaxed)); }

template <class Work>
struct Share {
  const Work& work;
  const int64_t blocks;
  std::atomic<int64_t> next{0};
  static void run(void* self) {
    Share& share = *static_cast<Share*>(self);
    for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.blocks;) share.work(i);
  }
};

// Calls work(i) for each block, on the calling thread and at most threads − 1 others.
template <class Work>
void for_blocks(int64_t blocks, int threads, const Work& work) {
  Share<Work> share{work, blocks};
  threads = static_cast<int>(std::min<int64_t>(threads, blocks));
  const Parallel pool = parallel.load(std::memory_order_relaxed);
  if (threads > 1 && pool) return pool(Share<Work>::run, &share, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> crew;
  try {
    while (static_cast<int>(crew.size()) < threads - 1) crew.emplace_back(Share<Work>::run, &share);
  } catch (const std::exception&) {  // the system gives no more threads
  }
  Share<Work>::run(&share);
  for (std::thread& one : crew) one.join();
}

// Calls work(offset, length, sums) for each block, where sums are two; the totals.
struct Totals {
  double first = 0, second = 0;
};
template <class Work>
Totals summed(int64_t n, int threads, const Work& work) {
  Totals totals;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  double one[2] = {};
  std::unique_ptr<double[]> many(blocks > 1 ? new double[static_cast<size_t>(blocks) * 2]() : nullptr);
  double* sums = many ? many.get() : one;
  for_blocks(blocks, threads, [&](int64_t i) { work(i * kBlock, std::min(kBlock, n - i * kBlock), sums + 2 * i); });
  for (int64_t i = 0; i < blocks; ++i) totals.first += sums[2 * i], totals.second += sums[2 * i + 1];
  return totals;
}

struct Moments {
  double mean, squares;
};

Moments moments_of(const float* x, int64_t n, int threads) {
  const Passes& p = passes();
  // One value is subtracted from all: a common offset would cost digits in the difference of squares.
  const Totals t = summed(n, threads, [&](int64_t i, int64_t m, double* sums) { p.moments(x + i, x[0], m, sums); });
  const double shift = t.first / static_cast<double>(n), squares = t.second - t.first * shift;
  return {static_cast<double>(x[0]) + shift, squares < 0 ? 0 : squares};
}

Activation activation_of(float threshold, int levels, double shift, int one_rounding) {
  const float count = static_cast<float>(levels);
  // As torch computes levels / threshold and threshold / levels.
  return {1 / threshold * count, static_cast<float>(shift), static_cast<float>(levels + shift), threshold / count, shift,
          one_rounding != 0};
}

template <class Call>
int guarded(const Call& call) {
  try {
    call();
    return 0;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

}  // namespace
}  // namespace nbsnn_fused

using namespace nbsnn_fused;

NBSNN_API int nbsnn_fused_version() { return 2; }

NBSNN_API void nbsnn_fused_pool(void* gomp_parallel) { parallel = reinterpret_cast<Parallel>(gomp_parallel); }

// Chooses an instruction set, for tests; 0 if this processor lacks it. The best one is chosen from the start.
NBSNN_API int nbsnn_fused_use(int wanted) {
  if (!has_target(wanted)) return 0;
  target = wanted;
  return 1;
}

NBSNN_API int nbsnn_fused_dot(const float* a, const float* b, int64_t n, int threads, double* result) {
  return guarded([&] {
    const Passes& p = passes();
    *result = summed(n, threads, [&](int64_t i, int64_t m, double* sums) { p.dot(a + i, b + i, m, sums); }).first;
  });
}

// result: mean, Σ(x − mean)²
NBSNN_API int nbsnn_fused_moments(const float* x, int64_t n, int threads, double* result) {
  return guarded([&] {
    const Moments seen = moments_of(x, n, threads);
    result[0] = seen.mean, result[1] = seen.squares;
  });
}

NBSNN_API int nbsnn_fused_activation(const float* x, int64_t n, const float* threshold, int levels, double shift, int one_rounding,
                                     int threads, float* scaled, float* y) {
  const Passes& p = passes();
  const Activation a = activation_of(*threshold, levels, shift, one_rounding);
  return guarded([&] {
    for_blocks((n + kBlock - 1) / kBlock, threads, [&](int64_t block) {
      const int64_t i = block * kBlock;
      p.activation(a, x + i, scaled ? scaled + i : nullptr, y + i, std::min(kBlock, n - i));
    });
  });
}

// Writes numbers as multiples, 0 to most <= 255, of a step, the smallest positive one of them. Returns 1 if they are no such multiples.
NBSNN_API int nbsnn_fused_counts(const float* x, int64_t n, int most, int threads, uint8_t* to, float* step) {
  const Passes& p = passes();
  for (const int64_t some : {std::min(n, kBlock / 8), n}) {  // mostly the smallest one is among the first
    const float least = p.smallest(x, some);
    if (least == 0) return 1;
    *step = least > FLT_MAX ? 1 : least;  // zeros are multiples of any number
    std::atomic<bool> fine{true};
    for_blocks((n + kBlock - 1) / kBlock, threads, [&](int64_t block) {
      const int64_t i = block * kBlock;
      if (fine && !p.counts(x + i, *step, most, std::min(kBlock, n - i), to + i)) fine = false;
    });
    if (fine) return 0;
  }
  return 1;
}

NBSNN_API int nbsnn_fused_activation_gradient(const float* grad, const float* scaled, int64_t n, const float* threshold, int levels,
                                              double shift, int threads, float* inside, float* grad_threshold) {
  return guarded([&] {
    const Passes& p = passes();
    const Activation a = activation_of(*threshold, levels, shift, 0);
    const Totals t = summed(n, threads, [&](int64_t i, int64_t m, double* sums) {
      p.activation_gradient(a, grad + i, scaled + i, inside + i, m, sums);
    });
    *grad_threshold = static_cast<float>(t.first / *threshold - t.second / levels);
  });
}

NBSNN_API int nbsnn_fused_weight(const float* from, int64_t n, const float* scale, const float* table, int cells, int own_scale,
                                 int threads, float* values, float* mean, float* deviation) {
  return guarded([&] {
    const Passes& p = passes();
    const Moments seen = moments_of(from, n, threads);
    const double count = static_cast<double>(n);
    const double spread =
        own_scale ? std::sqrt(seen.squares / count + seen.mean * seen.mean) : std::sqrt(seen.squares / std::max(count - 1, 1.0));
    const float divisor = static_cast<float>(spread);
    *mean = own_scale ? 0 : static_cast<float>(seen.mean);
    *deviation = divisor < FLT_MIN ? FLT_MIN : divisor;
    // deviation − deviation is 0, or NaN if a weight is not finite.
    const float unit = own_scale ? *scale * *deviation : *scale + (*deviation - *deviation);
    const Weight w{*mean, *deviation, *scale, unit, own_scale != 0, table, cells};
    for_blocks((n + kBlock - 1) / kBlock, threads, [&](int64_t block) {
      const int64_t i = block * kBlock;
      p.weight(w, from + i, values + i, std::min(kBlock, n - i));
    });
  });
}

NBSNN_API int nbsnn_fused_weight_gradient(const float* grad, const float* from, const float* values, int64_t n, const float* scale,
                                          const float* mean, const float* deviation, int own_scale, int threads, float* result,
                                          float* grad_scale) {
  return guarded([&] {
    const Passes& p = passes();
    const Weight w{*mean, *deviation, *scale, 0, own_scale != 0, nullptr, 0};
    const Totals t = summed(n, threads, [&](int64_t i, int64_t m, double* sums) {
      p.weight_gradient(w, grad + i, from + i, values + i, result + i, m, sums);
    });
    const double residue = own_scale ? t.second * static_cast<double>(*deviation) : t.second;
    *grad_scale = static_cast<float>(t.first / *scale - residue);
  });
}
