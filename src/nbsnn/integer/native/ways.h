// The rule that chooses the algorithm: events or bit planes (docs/kernel.md, "The rule").
#pragma once
#include "flight.h"

namespace nbsnn {

// Sets what the kernel needs of a branch that is about to be added to `node`, and whether the node can still be computed from planes.
void prepare_branch(const Kernel& kernel, const Net& net, Node& node, Branch& b);

// Once all branches are there: the weights of constant branches as doubles.
void prepare_network(Net& net);

// The look-ups that a mode needs, made by the first run that does; later ones wait for it.
void prepare_mode(const Net& net, const Kernel& kernel, int mode);

// Which nodes of a flight are computed from planes, those that fill enough of a vector, and which forms of each value are read.
void choose_ways(const Net& net, const Kernel& kernel, Flight& flight);

}  // namespace nbsnn
