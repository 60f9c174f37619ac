// Fused passes over float32 tensors: what the C interface (fused.cpp) and the instruction sets (targets.cpp) share.
#pragma once
#include <cstdint>

namespace nbsnn_fused {

constexpr int64_t kBlock = 1 << 15;  // numbers; a block's sums are added in the order of the blocks
constexpr int kLanes = 16;

// An activation of L steps below the threshold θ: scaled = clamp(low + x·factor, low, high), y = floor(scaled)·step.
struct Activation {
  float factor, low, high, step;  // L/θ, the shift (½ and the tolerance), L + shift, θ/L
  double shift;
  bool one_rounding;  // of low + x·factor: fused multiply-add
};

// A weight w: level of (w − mean)/deviation/scale by table, times unit.
struct Weight {
  float mean, deviation, scale, unit;
  bool own_scale;
  const float* table;
  int cells;
};

// The passes on one block, for one instruction set; those with sums write one or two.
struct Passes {
  void (*dot)(const float* a, const float* b, int64_t n, double* sums);
  void (*moments)(const float* x, float first, int64_t n, double* sums);  // Σ(x − first), Σ(x − first)²
  void (*activation)(const Activation&, const float* x, float* scaled, float* y, int64_t n);  // scaled may be null
  void (*activation_gradient)(const Activation&, const float* grad, const float* scaled, float* inside, int64_t n, double* sums);
  float (*smallest)(const float* x, int64_t n);  // positive number; infinity if there is none, 0 if one is negative or NaN
  bool (*counts)(const float* x, float step, int most, int64_t n, uint8_t* to);  // x = step·to; false: some are not
  void (*weight)(const Weight&, const float* from, float* values, int64_t n);
  void (*weight_gradient)(const Weight&, const float* grad, const float* from, const float* values, float* result, int64_t n,
                          double* sums);
};

constexpr int kTargets = 3;  // baseline, AVX2, AVX-512

bool has_target(int target);  // does this processor have it?
const Passes& passes_of(int target);

}  // namespace nbsnn_fused
