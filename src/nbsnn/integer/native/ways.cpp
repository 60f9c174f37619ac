#include "ways.h"

#include <algorithm>
#include <cmath>

#include "gathering.h"
#include "tables.h"
#include "thresholds.h"

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

// Gives channels whose multiplier is zero a multiplier of one, and weights of zero.
void drop_dead(const Node& node, Branch& b) {
  const size_t outputs = static_cast<size_t>(node.channels / b.groups), inputs = static_cast<size_t>(b.inputs / b.groups);
  for (size_t c = 0; c < static_cast<size_t>(node.channels); ++c) {
    if (b.multiplier32[c]) continue;
    b.multiplier[c] = b.multiplier32[c] = 1;
    for (size_t row = 0; row < static_cast<size_t>(b.taps) * static_cast<size_t>(b.inputs); ++row)
      if (row % static_cast<size_t>(b.inputs) / inputs == c / outputs) b.weight[row * outputs + c % outputs] = 0;
  }
}

// The largest sum of |weights| of an output.
int load_of(const Node& node, const Branch& b) {
  const size_t outputs = static_cast<size_t>(node.channels / b.groups), inputs = static_cast<size_t>(b.inputs / b.groups);
  std::vector<int64_t> sums(static_cast<size_t>(node.channels), 0);
  const int16_t* w = b.weight.data();
  for (size_t row = 0; row < static_cast<size_t>(b.taps) * static_cast<size_t>(b.inputs); ++row, w += outputs) {
    int64_t* sum = sums.data() + row % static_cast<size_t>(b.inputs) / inputs * outputs;
    for (size_t o = 0; o < outputs; ++o) sum[o] += std::abs(static_cast<int>(w[o]));
  }
  return static_cast<int>(std::min<int64_t>(INT32_MAX, *std::max_element(sums.begin(), sums.end())));
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

}  // namespace

void prepare_branch(const Kernel& kernel, const Net& net, Node& node, Branch& b) {
  b.wmax = 1;
  for (int16_t w : b.weight) b.wmax = std::max(b.wmax, std::abs(static_cast<int>(w)));
  const bool possible = is_single(b) && node.positions > 1 && !node.wide && kernel.run_planes;
  b.rows = b.source >= 0 && b.groups == 1 && b.wmax <= 31 && !node.head;
  b.identity = is_identity(node, b);
  if (b.source >= 0 && !b.identity && !node.wide) drop_dead(node, b);
  b.load = load_of(node, b);
  const bool tables = possible && b.rows && make_tables(node, b);
  const bool planes = b.source < 0 ? node.positions > 1 && !node.wide && kernel.run_planes : possible && (b.identity || tables);
  if (planes && is_single(b))
    b.gathering = make_gathering(node, b, b.source < 0 ? net.pixels : net.nodes[static_cast<size_t>(b.source)].positions);
  if (b.rows) kernel.pack(node, b, possible || node.positions == 1);
  node.planes = planes && (node.branches.empty() || node.planes);
}

void prepare_network(Net& net) {
  for (Node& node : net.nodes) {
    make_thresholds(net, node);
    for (Branch& b : node.branches)
      if (node.planes && b.source < 0) set_constant(net, node, b);
  }
}

void choose_ways(const Net& net, const Kernel& kernel, Flight& flight) {
  flight.dense.assign(net.nodes.size(), 0), flight.records_read = flight.planes_read = flight.dense;
  for (size_t i = 0; i < net.nodes.size(); ++i) {
    const Node& node = net.nodes[i];
    flight.dense[i] = node.planes && static_cast<int64_t>(flight.images) * node.positions * 4 >= kernel.vector;
    for (const Branch& b : node.branches)
      if (b.source >= 0)
        (flight.dense[i] || b.fields || node.head ? flight.planes_read : flight.records_read)[static_cast<size_t>(b.source)] = 1;
  }
}

}  // namespace nbsnn
