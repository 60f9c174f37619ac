#include "ways.h"

#include <algorithm>
#include <cmath>

#include "dots.h"
#include "gathering.h"
#include "tables.h"
#include "targets.h"
#include "thresholds.h"

namespace nbsnn {
namespace {

// Input positions that a tap reads for an output position, at most; 1 in every convolution.
int64_t most_reads(const Branch& b) {
  int64_t reads = 1;
  for (size_t i = 0; i + 1 < b.start.size(); ++i) reads = std::max(reads, static_cast<int64_t>(b.start[i + 1] - b.start[i]));
  return reads;
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
  const double unit = static_cast<double>(net.grid.bound()) * static_cast<double>(most_reads(b));
  std::vector<double> sum(static_cast<size_t>(node.channels), 0);
  for (size_t row = 0; row < static_cast<size_t>(b.taps) * static_cast<size_t>(b.inputs); ++row)
    for (size_t o = 0; o < outputs; ++o)
      sum[row % static_cast<size_t>(b.inputs) / inputs * outputs + o] += unit * std::abs(b.weight[row * outputs + o]);
  bool fits = true;
  for (size_t o = 0; o < sum.size(); ++o)
    fits = fits && sum[o] < std::ldexp(1.0, 51) && sum[o] * std::abs(static_cast<double>(b.multiplier[o])) < std::ldexp(1.0, 62);
  if (fits) b.exact.assign(b.weight.begin(), b.weight.end());
}

// Bias and weights as floats, of a node that reads nothing but the image, and how far off the sums of a channel may be (image.inc): one
// part in 2^24 of the terms' magnitudes for each operation on them, and half a unit for the rounding of an integer current, in each
// of T steps; a quarter more makes up for the rounding of these. Not for nodes where the average sum would often come too near a tie.
void set_drive(const Net& net, Node& node) {
  constexpr double kMostMargin = 1.0 / 256, kRounding = 1.0 / (1 << 24);
  bool fits = node.planes && net.timesteps <= kImageSteps && node.levels <= net.timesteps && node.retract < 0;
  size_t rows = 1;
  for (const Branch& b : node.branches) {
    fits = fits && b.source < 0 && b.groups == 1;
    rows += static_cast<size_t>(b.taps) * static_cast<size_t>(b.inputs);
  }
  if (!fits) return;
  const size_t channels = static_cast<size_t>(node.channels), padded = static_cast<size_t>(round_up(node.channels, 4));
  const size_t positions = node.bias.size() / channels;  // with a bias of their own
  const double unit = std::ldexp(1.0, -node.fraction_bits);
  const auto at = [&](size_t row, size_t o) { return (o / 4 * rows + row) * 4 + o % 4; };
  std::vector<double> size(channels, 0);
  node.drive.assign(padded * rows, 0), node.margin.assign(padded, 0);
  for (size_t i = 0; i < node.bias.size(); ++i) {
    const double bias = static_cast<double>(node.bias[i]) * unit;
    size[i / positions] = std::max(size[i / positions], std::abs(bias));
    if (positions == 1) node.drive[at(0, i)] = static_cast<float>(bias);
  }
  size_t row = 1;
  for (const Branch& b : node.branches) {
    const double largest = static_cast<double>(net.grid.bound()) * static_cast<double>(most_reads(b));
    for (size_t i = 0; i < b.weight.size(); ++i) {
      const size_t o = i % channels;
      const double weight = std::ldexp(static_cast<double>(b.multiplier[o]), -b.shift) * unit * b.weight[i];
      node.drive[at(row + i / channels, o)] = static_cast<float>(weight);
      size[o] += std::abs(weight) * largest;
    }
    row += b.weight.size() / channels;
  }
  double sum = 0;
  for (size_t o = 0; o < channels; ++o) {
    const double rounding = static_cast<double>(rows + 8) * kRounding * (size[o] + 2);
    const double margin = net.timesteps * (rounding + static_cast<double>(node.branches.size()) * unit / 2);
    node.margin[o] = static_cast<float>(1.25 * margin);
    sum += margin;
  }
  if (sum > kMostMargin * static_cast<double>(channels)) node.margin.clear(), node.drive.clear();
}

}  // namespace

void prepare_branch(const Kernel& kernel, const Net& net, Node& node, Branch& b) {
  b.wmax = 1;
  for (int16_t w : b.weight) b.wmax = std::max(b.wmax, std::abs(static_cast<int>(w)));
  const bool possible = most_reads(b) == 1 && node.positions > 1 && !node.wide && kernel.run_planes;
  b.rows = b.source >= 0 && b.groups == 1 && b.wmax <= 31 && !node.head;
  b.identity = is_identity(node, b);
  if (b.source >= 0 && !b.identity && !node.wide) drop_dead(node, b);
  b.load = load_of(node, b);
  const bool tables = possible && b.rows && make_tables(node, b);
  const bool planes = b.source < 0 ? node.positions > 1 && !node.wide && kernel.run_planes : possible && (b.identity || tables);
  if (planes && most_reads(b) == 1)
    b.gathering = make_gathering(node, b, b.source < 0 ? net.pixels : net.nodes[static_cast<size_t>(b.source)].positions);
  if (b.rows) kernel.pack(node, b, possible || node.positions == 1);
  node.planes = planes && (node.branches.empty() || node.planes);
}

void prepare_network(Net& net) {
  for (Node& node : net.nodes) {
    make_thresholds(net, node);
    set_drive(net, node);
    for (Branch& b : node.branches)
      if (node.planes && b.source < 0) set_constant(net, node, b);
  }
}

namespace {

// Sets the whole weights of branches for which products may be cheaper than look-ups: those beyond ±3, whose tables are many, and all
// where tiles are multiplied.
void prepare_dots(const Net& net, const DotProduct& product) {
  for (const Node& node : net.nodes)
    for (size_t b = 0; b < node.branches.size(); ++b) {
      const Branch& branch = node.branches[b];
      const bool first = node.planes && branch.source >= 0 && !branch.identity && !branch.is_digit;
      if (first && (branch.wmax > 3 || product.depth > 1)) branch.dots = make_dots(net, node, b, product);
    }
}

}  // namespace

void prepare_mode(const Net& net, const Kernel& kernel, int mode) {
  const bool counts = mode == kCounts, both_signs = mode == kFixedSigned || mode == kSettle;
  for (Kind kind : {kSixes, kSignedFours, kSigned, kTwoBits, kThreeBits}) {
    const bool used = is_signed(kind) ? both_signs : (kind == kSixes) != counts;
    if (!used || !kernel.wide || (kind == kSignedFours && !permutes_pairs())) continue;
    std::call_once(net.prepared[kind], [&] {
      for (const Node& node : net.nodes)
        for (const Branch& b : node.branches)
          if (node.planes && b.source >= 0 && !b.identity) make_wide_tables(net, node, b, kind);
    });
  }
  if (const DotProduct* product = dots_of(net.target)) std::call_once(net.prepared[kKinds], [&] { prepare_dots(net, *product); });
}

namespace {

// Whether a node is computed from planes. Lists of spikes, where all of its branches have them, compete with full vectors; records of
// events with a quarter. A small map sees much padding, which lists leave out.
bool takes_planes(const Node& node, int vector, int images) {
  const bool lists = std::all_of(node.branches.begin(), node.branches.end(), [](const Branch& b) { return b.fields > 0; });
  const int64_t places = static_cast<int64_t>(images) * node.positions;
  return node.planes && (lists ? places * 2 >= vector && node.positions * 8 > vector : places * 4 >= vector);
}

}  // namespace

void choose_ways(const Net& net, const Kernel& kernel, Flight& flight) {
  flight.dense.assign(net.nodes.size(), 0), flight.records_read = flight.planes_read = flight.dense;
  for (size_t i = 0; i < net.nodes.size(); ++i) {
    const Node& node = net.nodes[i];
    flight.dense[i] = takes_planes(node, kernel.vector, flight.images);
    for (const Branch& b : node.branches)
      if (b.source >= 0)
        (flight.dense[i] || b.fields || node.head ? flight.planes_read : flight.records_read)[static_cast<size_t>(b.source)] = 1;
  }
}

}  // namespace nbsnn
