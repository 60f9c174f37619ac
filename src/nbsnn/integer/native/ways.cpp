#include "ways.h"

#include <algorithm>
#include <cmath>

namespace nbsnn {
namespace {

// Whether each tap reads one input position at most, as in every convolution.
bool is_single(const Branch& b) {
  for (size_t i = 0; i + 1 < b.start.size(); ++i)
    if (b.start[i + 1] - b.start[i] > 1) return false;
  return true;
}

// Whether the branch passes on its source's values unchanged.
bool is_identity(const Node& node, const Branch& b) {
  const bool alone = b.groups == b.inputs && node.channels == b.inputs && b.taps == 1;
  return alone && b.wmax == 1 && *std::min_element(b.weight.begin(), b.weight.end()) == 1;
}

// Weights of a constant branch as doubles, if every sum stays below 2^51 and every product with a multiplier below 2^62.
void set_constant(const Net& net, const Node& node, Branch& b) {
  const size_t outputs = static_cast<size_t>(node.channels / b.groups), inputs = static_cast<size_t>(b.inputs / b.groups);
  int64_t reads = 1;
  for (size_t i = 0; i + 1 < b.start.size(); ++i) reads = std::max(reads, static_cast<int64_t>(b.start[i + 1] - b.start[i]));
  const double unit = static_cast<double>(net.pixel_bound) * static_cast<double>(reads);
  std::vector<double> sum(static_cast<size_t>(node.channels), 0);
  for (size_t row = 0; row < static_cast<size_t>(b.taps) * static_cast<size_t>(b.inputs); ++row)
    for (size_t o = 0; o < outputs; ++o)
      sum[row % static_cast<size_t>(b.inputs) / inputs * outputs + o] += unit * std::abs(b.weight[row * outputs + o]);
  bool fits = true;
  for (size_t o = 0; o < sum.size(); ++o)
    fits = fits && sum[o] < std::ldexp(1.0, 51) && sum[o] * std::abs(static_cast<double>(b.multiplier[o])) < std::ldexp(1.0, 62);
  if (fits) b.exact.assign(b.weight.begin(), b.weight.end());
}

// Which forms of each value are read where planes are in use.
void set_readers(Net& net) {
  for (const Node& node : net.nodes)
    for (const Branch& b : node.branches) {
      if (b.source < 0) continue;
      Node& read = net.nodes[static_cast<size_t>(b.source)];
      (node.planes ? read.planes_read : read.records_read) = true;
    }
}

}  // namespace

void prepare_branch(const Kernel& kernel, Node& node, Branch& b) {
  b.wmax = 1;
  for (int16_t w : b.weight) b.wmax = std::max(b.wmax, std::abs(static_cast<int>(w)));
  const bool single = is_single(b), spatial = node.positions > 1 && !node.wide;
  b.rows = b.source >= 0 && b.groups == 1 && b.wmax <= 31;
  b.identity = is_identity(node, b);
  if (b.rows && single && spatial && kernel.make_tables) kernel.make_tables(node, b, b.weight);
  if (b.rows) kernel.pack(node, b);
  const bool planes = b.source < 0 || (single && b.identity) || !b.tables.empty();
  node.planes = planes && (node.branches.empty() || node.planes) && spatial && kernel.run_planes;
}

void prepare_network(Net& net) {
  set_readers(net);
  for (Node& node : net.nodes) {
    net.planes = net.planes || node.planes;
    for (Branch& b : node.branches)
      if (node.planes && b.source < 0) set_constant(net, node, b);
  }
}

bool are_dense(const Net& net, const Kernel& kernel, int images) {
  return net.planes && images <= kernel.vector && images * 8 >= kernel.vector * 3;
}

}  // namespace nbsnn
