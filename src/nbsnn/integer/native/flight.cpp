#include "flight.h"

#include <limits>

namespace nbsnn {

int inputs_of(const Net& net, const Request& ask, const Flight& flight, const Node& node) {
  int steps = net.timesteps;
  for (const Branch& b : node.branches)
    if (ask.mode == kSettle && b.source >= 0)
      for (int last : flight.values[static_cast<size_t>(b.source)].last) steps = std::max(steps, last);
  return steps;
}

int lanes_of(const Request& ask, const Node& node, int inputs) {
  if (ask.mode == kCounts) return bits_in(node.levels);
  if (ask.mode != kSettle) return inputs;
  // After its last input a neuron moves to its count by one spike a step.
  return static_cast<int>(round_up(node.pool ? inputs : inputs + node.levels + 1, kLanes));
}

void take_planes(const Node& node, const Flight& flight, Value& value, Pool& pool) {
  const size_t places = static_cast<size_t>(flight.images) * static_cast<size_t>(node.positions);
  const size_t margin = static_cast<size_t>(round_up(node.positions + kMaxVector, kMaxVector));
  value.quads = (node.channels + 3) / 4;
  value.used.assign(static_cast<size_t>(value.lanes * value.signs), 0);
  value.fired.assign(value.used.size(), 0);
  value.front = margin;
  // An odd number of cache lines, so that rows do not fall on the same sets.
  value.stride = static_cast<size_t>(round_up(static_cast<int64_t>(places), kMaxVector)) | kMaxVector;
  value.planes = pool.take(value.used.size() * static_cast<size_t>(value.quads) * value.stride + 2 * margin + kBlockLanes);
}

namespace {

// Channels of which a block of a node is a multiple, where several members share them: whole rows of weights if a plane of a source has
// so few spikes that it is probably added by lists.
int unit_of(const Net& net, const Flight& flight, const Node& node) {
  constexpr int64_t kFew = 10;  // neurons for each that fires
  int unit = 16;
  for (const Branch& b : node.branches) {
    if (b.source < 0 || !b.fields || b.row_bytes * b.fields >= node.channels) continue;
    const Value& in = flight.values[static_cast<size_t>(b.source)];
    const int64_t neurons = static_cast<int64_t>(flight.images) * net.nodes[static_cast<size_t>(b.source)].positions * b.inputs;
    for (int64_t fired : in.fired)
      if (fired && fired * kFew < neurons) unit = b.row_bytes * b.fields;
  }
  return unit;
}

// Blocks of at most `most` for several members: the largest of those with which all have done soonest. A block gathers its indices for
// itself, which takes as long as some channels; of one vector, look-ups do not share the loads of tables.
Shape shared(int channels, int unit, int vectors, int vector, int members, const Shape& most) {
  constexpr float kGather = 6, kAlone = 1.2f;
  Shape best = most;
  float least = std::numeric_limits<float>::infinity();
  for (int parts = 1; parts <= (vectors < 2 * members ? members : 1); ++parts) {
    const int c = std::min(most.channels, static_cast<int>(round_up((channels + parts - 1) / parts, unit)));
    for (int v = most.places / vector; v > 0; --v) {
      const int blocks = (vectors + v - 1) / v * ((channels + c - 1) / c), turns = (blocks + members - 1) / members;
      const float cost = static_cast<float>(turns * v) * (static_cast<float>(c) + kGather) * (v > 1 ? 1 : kAlone);
      if (cost < least) least = cost, best = Shape{v * vector, c};
    }
  }
  return best;
}

}  // namespace

Shape block_of(const Net& net, const Request& ask, const Flight& flight, int index, int vector, int members) {
  const Node& node = net.nodes[static_cast<size_t>(index)];
  constexpr int64_t kRowsAtATime = 12, kSums = 384 << 10, kNear = 128 << 10;
  const int64_t steps = std::min({inputs_of(net, ask, flight, node), flight.values[static_cast<size_t>(index)].lanes, 8});
  const int64_t all = round_up(static_cast<int64_t>(flight.images) * node.positions, vector);
  int64_t branches = 0;
  for (const Branch& b : node.branches) branches += b.source >= 0;
  int64_t places = std::min<int64_t>(
      {round_up(std::max<int64_t>(1, kRowsAtATime * kMaxVector / (steps * vector)) * vector, vector), kBlockLanes, all});
  int64_t channels = std::min<int64_t>(round_up(node.channels, 4), kGroup);
  const auto bytes = [&] { return branches * channels * places * steps * 2; };
  while (bytes() * (places + vector) <= kNear * places && places + vector <= std::min<int64_t>(kBlockLanes, all)) places += vector;
  while (bytes() > kSums && places > vector) places -= vector;
  while (bytes() > kSums && channels > 32) channels = round_up(channels / 2, 16);
  const Shape most{static_cast<int>(places), static_cast<int>(channels)};
  if (members == 1) return most;
  return shared(node.channels, unit_of(net, flight, node), static_cast<int>(all / vector), vector, members, most);
}

}  // namespace nbsnn
