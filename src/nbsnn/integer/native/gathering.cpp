#include "gathering.h"

#include <algorithm>

namespace nbsnn {
namespace {

constexpr int kNowhere = INT32_MIN;

// Source positions by their place in a phase, and the other way round.
struct Phase {
  const int span;  // places at most
  int low = 0, high = 0;
  std::vector<int> places, sources;

  Phase(int positions, int most)
      : span(most), places(static_cast<size_t>(positions), kNowhere), sources(3 * static_cast<size_t>(most), kNowhere) {}
  bool in_range(int place) const { return place >= -span && place < 2 * span; }
  int place_of(int source) const { return places[static_cast<size_t>(source)]; }
  int source_of(int place) const { return sources[static_cast<size_t>(place + span)]; }
  void add(int source, int place) {
    places[static_cast<size_t>(source)] = place, sources[static_cast<size_t>(place + span)] = source;
    low = std::min(low, place), high = std::max(high, place);
  }
};

using Reads = std::vector<std::pair<int, int>>;  // output position, source position

Reads reads_of(const Node& node, const Branch& b, int tap) {
  Reads reads;
  for (int p = 0; p < node.positions; ++p) {
    const size_t slot = static_cast<size_t>(tap) * static_cast<size_t>(node.positions) + static_cast<size_t>(p);
    if (b.start[slot] < b.start[slot + 1]) reads.emplace_back(p, static_cast<int>(b.from[b.start[slot]]));
  }
  return reads;
}

// A phase of one tap's reads, in the order of the output.
Phase phase_of(const Reads& reads, int positions, int span) {
  Phase phase(positions, span);
  phase.low = phase.high = reads.empty() ? 0 : reads[0].first;
  for (auto [position, source] : reads) phase.add(source, position);
  return phase;
}

// Adds a tap's reads to a phase with one shift for all, if they agree with what is there and stay within its span.
bool join(Phase& phase, const Reads& reads, int& shift) {
  const auto known = std::find_if(reads.begin(), reads.end(), [&](auto& r) { return phase.place_of(r.second) != kNowhere; });
  if (known == reads.end()) return false;
  shift = phase.place_of(known->second) - known->first;
  int low = phase.low, high = phase.high;
  for (auto [position, source] : reads) {
    const int place = position + shift, there = phase.place_of(source);
    if (!phase.in_range(place) || (there == kNowhere ? phase.source_of(place) != kNowhere : there != place)) return false;
    low = std::min(low, place), high = std::max(high, place);
  }
  if (high - low >= phase.span) return false;
  for (auto [position, source] : reads) phase.add(source, position + shift);
  return true;
}

std::vector<Segment> segments_of(const Phase& phase) {
  std::vector<Segment> out;
  for (int place = phase.low; place <= phase.high; ++place) {
    const int to = place - phase.low, from = phase.source_of(place);
    if (from == kNowhere) continue;
    if (!out.empty() && out.back().to + out.back().count == to) {
      Segment& last = out.back();
      const int step = from - (last.from + (last.count - 1) * last.step);
      if ((last.count == 1 && (step == 1 || step == 2)) || (last.count > 1 && step == last.step)) {
        last.step = step, ++last.count;
        continue;
      }
    }
    out.push_back(Segment{to, from, 1, 1});
  }
  return out;
}

}  // namespace

Gathering make_gathering(const Node& node, const Branch& b, int positions) {
  Gathering g;
  std::vector<Phase> phases;
  for (int tap = 0; tap < b.taps; ++tap) {
    const Reads reads = reads_of(node, b, tap);
    int shift = 0;
    size_t found = 0;
    while (!reads.empty() && found < phases.size() && !join(phases[found], reads, shift)) ++found;
    if (found == phases.size()) phases.push_back(phase_of(reads, positions, node.positions)), shift = 0;
    g.phase.push_back(static_cast<int>(found)), g.shift.push_back(shift);
  }
  for (const Phase& phase : phases) g.phases.push_back(segments_of(phase));
  g.row = node.positions + kMaxVector;
  g.valid.assign(static_cast<size_t>(b.taps) * static_cast<size_t>(g.row), 0);
  const Segment* only = g.phases.size() == 1 && g.phases[0].size() == 1 ? &g.phases[0][0] : nullptr;
  g.direct = only && positions == node.positions && only->step == 1;
  for (int tap = 0; tap < b.taps; ++tap) {
    const size_t i = static_cast<size_t>(tap);
    const Reads reads = reads_of(node, b, tap);
    if (reads.empty()) g.shift[i] = 0;
    else g.shift[i] += g.direct ? only->from - only->to - phases[0].low : -phases[static_cast<size_t>(g.phase[i])].low;
    for (auto [position, source] : reads)
      for (int p = position; p < g.row; p += node.positions)
        g.valid[i * static_cast<size_t>(g.row) + static_cast<size_t>(p)] = 0xff;
  }
  g.lowest = *std::min_element(g.shift.begin(), g.shift.end());
  g.highest = *std::max_element(g.shift.begin(), g.shift.end());
  return g;
}

}  // namespace nbsnn
