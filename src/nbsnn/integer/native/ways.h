// The rule that chooses the algorithm: events or bit planes (docs/kernel.md, "The rule").
#pragma once
#include "net.h"

namespace nbsnn {

// Sets what the kernel needs of a branch that is about to be added to `node`, and whether the node can still be computed from planes.
void prepare_branch(const Kernel& kernel, Node& node, Branch& b);

// Once all branches are there: which forms of each value are read, and the weights of constant branches as doubles.
void prepare_network(Net& net);

// Whether this many images in flight are computed from planes, in nodes that can be: those of 3/8 of a vector pay for it.
bool are_dense(const Net& net, const Kernel& kernel, int images);

}  // namespace nbsnn
