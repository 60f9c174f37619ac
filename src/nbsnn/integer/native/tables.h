// Weights as look-up tables of the sums of any subset of four.
#pragma once
#include "net.h"

namespace nbsnn {

// Sets tables, codes and runs of a branch with small weights [tap][input][output], of one group. Look-ups go by four inputs, then by
// tap. Returns whether there are tables: none if the sums of all look-ups, of positive and negative spikes together, could leave int16.
bool make_tables(const Node& node, Branch& b);

}  // namespace nbsnn
