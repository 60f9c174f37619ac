// Instruction sets: 0 baseline (what every processor of the architecture has), 1 AVX2, 2 AVX-512, 3 AVX-512 with VBMI.
#pragma once
#include "flight.h"

namespace nbsnn {

constexpr int kTargets = 4;

bool has_target(int target);  // does this processor have it?
const Kernel& kernel_of(int target);

// Whether it permutes two vectors of bytes (vpermi2b) as fast as one: AMD's do, others take several operations for it.
bool permutes_pairs();

// Runs a request (crew.cpp); false if memory did not suffice.
bool run(const Net& net, const Request& ask, int flight_images);

}  // namespace nbsnn
