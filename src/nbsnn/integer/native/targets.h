// Instruction sets of this processor family, the best one last: a kernel, and what it multiplies counts with.
#pragma once
#include "flight.h"

namespace nbsnn {

struct DotProduct;

const char* target_name(int target);  // null beyond the last
bool has_target(int target);          // does this processor have it?
const Kernel& kernel_of(int target);
const DotProduct* dots_of(int target);  // null: none

// Whether it permutes two vectors of bytes (vpermi2b) as fast as one: AMD's do, others take several operations for it.
bool permutes_pairs();

enum class End { done, refused, failed };  // images are beyond the grid; memory did not suffice

// Runs a request (crew.cpp).
End run(const Net& net, const Request& ask, int flight_images);

}  // namespace nbsnn
