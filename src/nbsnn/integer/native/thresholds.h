// Neurons in 16 bits: the membrane is compared with its threshold in units of the sum that it received.
#pragma once
#include "net.h"

namespace nbsnn {

// Sets the thresholds of a node whose branches are all there, if its neurons can be computed from them: at most kCounts - 1 time
// steps, one bias for all positions, one branch with weights, at most one identity, and sums that fit int16.
void make_thresholds(const Net& net, Node& node);

}  // namespace nbsnn
