#include "thresholds.h"

#include <algorithm>

namespace nbsnn {
namespace {

constexpr int kNever = INT16_MAX;  // no sum is greater

// a = quotient · b + rest, 0 <= rest < b.
struct Division {
  int64_t quotient, rest;
  Division(int64_t a, int64_t b) : quotient(a / b), rest(a % b) {
    if (rest < 0) rest += b, --quotient;
  }
};

int16_t clip(int64_t value) { return static_cast<int16_t>(std::clamp<int64_t>(value, INT16_MIN, INT16_MAX)); }

// The rows of one channel. With S the sum of the branch with weights and s the count of the identity, V = H/2 + t·b + M·S + m·s − k·H
// is at least H for a spike, and at most `retract` to take one back. Divided by M, m·s is o·M + r, and a bound A is a·M + ρ, so that
// S + o >= a, or a + 1 where ρ > r. Only the order of the rests matters: they are replaced by their ranks.
struct Rows {
  const Net& net;
  const Node& node;
  const int channel;
  const int64_t multiplier, identity;
  std::vector<int64_t> rests;

  int64_t height() const { return int64_t{1} << node.fraction_bits; }
  Division offset(int count) const { return {identity * count, multiplier}; }
  Division bound(int step, int count, int64_t membrane) const {
    const int64_t bias = node.bias[static_cast<size_t>(channel)];
    return {membrane + count * height() - height() / 2 - step * bias, multiplier};
  }
  int16_t rank(int64_t rest) const {
    return static_cast<int16_t>(std::lower_bound(rests.begin(), rests.end(), rest) - rests.begin());
  }
  void sort_rests(int64_t retract) {
    rests.clear();
    for (int k = 0; k < kCountRow; ++k) {
      rests.push_back(offset(k).rest);
      for (int t = 1; t <= net.timesteps; ++t)
        for (int64_t membrane : {height(), retract}) rests.push_back(bound(t, k, membrane).rest);
    }
    std::sort(rests.begin(), rests.end());
    rests.erase(std::unique(rests.begin(), rests.end()), rests.end());
  }
  // A spike is sent where the sum is greater than its row's entry, and one is taken back where it is not greater than the other's.
  void write(int16_t* to, bool skip, int64_t retract, int cap) {
    if (skip) sort_rests(retract);
    for (int k = 0; k < kCountRow; ++k) {
      int16_t* at = to + k;
      const auto put = [&at](int16_t entry) { *at = entry, at += kCountRow; };
      if (skip) put(clip(offset(k).quotient)), put(rank(offset(k).rest));
      for (int t = 1; t <= net.timesteps; ++t) {
        const Division up = bound(t, k, height()), down = bound(t, k, retract);
        put(k >= cap ? kNever : clip(up.quotient - (skip || up.rest == 0)));
        if (skip) put(rank(up.rest));
        put(k == 0 ? INT16_MIN : clip(down.quotient));
        if (skip) put(rank(down.rest));
      }
    }
  }
};

}  // namespace

void make_thresholds(const Net& net, Node& node) {
  Thresholds& out = node.thresholds;
  if (!node.planes || net.timesteps >= kCountRow || node.bias.size() != static_cast<size_t>(node.channels)) return;
  int weighted = -1, identity = -1;
  for (size_t i = 0; i < node.branches.size(); ++i) {
    const Branch& b = node.branches[i];
    int& place = b.identity ? identity : weighted;
    if (b.source < 0 || place >= 0 || net.nodes[static_cast<size_t>(b.source)].levels > net.timesteps) return;
    place = static_cast<int>(i);
  }
  if (weighted < 0) return;
  const bool skip = identity >= 0;
  const Branch& main = node.branches[static_cast<size_t>(weighted)];
  const size_t stride =
      static_cast<size_t>(kCountRow) * (skip ? 2 + 4 * static_cast<size_t>(net.timesteps) : 2 * static_cast<size_t>(net.timesteps));
  std::vector<int16_t> fixed(stride * static_cast<size_t>(node.channels)), settle(fixed.size());
  for (int c = 0; c < node.channels; ++c) {
    const int64_t m = main.multiplier[static_cast<size_t>(c)],
                  other = skip ? node.branches[static_cast<size_t>(identity)].multiplier[static_cast<size_t>(c)] : 0;
    if (m <= 0) return;
    Rows rows{net, node, c, m, other, {}};
    const int64_t reach = int64_t{main.load} * net.timesteps + std::abs(rows.offset(net.timesteps).quotient) + 2;
    if (reach > INT16_MAX) return;
    const size_t at = stride * static_cast<size_t>(c);
    rows.write(fixed.data() + at, skip, node.retract, kCountRow);
    rows.write(settle.data() + at, skip, -1, node.levels);
  }
  out.weighted = weighted, out.identity = identity, out.stride = stride;
  out.fixed = std::move(fixed), out.settle = std::move(settle);
}

}  // namespace nbsnn
