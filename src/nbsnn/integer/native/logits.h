#pragma once
#include "net.h"

namespace nbsnn {

// The network's result [batch, outputs] of the sums of its only head.
void write_logits(const Net& net, const int64_t* sums, int64_t batch, float* out);

}  // namespace nbsnn
