// Where the look-ups of a branch find their indices.
//
// A tap of a convolution reads a shifted copy of its source: place p of the output sees place p + shift. With a stride of 2 that
// is so within each of four phases (even or odd rows, even or odd columns), each a list of source positions in the order of the
// output. Phases are found from the tables of input positions alone; a tap that shares none is a phase of its own, so that any
// table at all can be gathered.
#pragma once
#include "net.h"

namespace nbsnn {

// `b` reads one position at most for each tap and output position; its source has `positions`.
Gathering make_gathering(const Node& node, const Branch& b, int positions);

}  // namespace nbsnn
