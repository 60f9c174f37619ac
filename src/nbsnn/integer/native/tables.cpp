#include "tables.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

namespace nbsnn {
namespace {

// The largest sums of positive and of negative weights, output by output.
struct Parts {
  std::vector<int> up, down;
  explicit Parts(int outputs) : up(static_cast<size_t>(outputs), 0), down(up) {}
};

}  // namespace

void make_tables(const Node& node, Branch& b) {
  const int groups = (b.inputs + 3) / 4, look_ups = b.taps * groups, quads = (node.channels + 3) / 4;
  b.tables.assign(16, 0);  // for outputs beyond the last
  b.codes.assign(static_cast<size_t>(quads) * static_cast<size_t>(look_ups) * 4, 0);
  std::unordered_map<uint32_t, uint32_t> known{{0, 0}};
  Parts run(node.channels);
  std::vector<int> all(static_cast<size_t>(node.channels), 0);
  for (int k = 0, begin = 0; k < look_ups; ++k) {
    const int group = k / b.taps, tap = k % b.taps;
    Parts more(node.channels);
    bool full = k - begin >= kMaxRun;
    for (int o = 0; o < node.channels; ++o) {
      const size_t i = static_cast<size_t>(o);
      int8_t w[4] = {0, 0, 0, 0};
      for (int j = 0; j < 4 && group * 4 + j < b.inputs; ++j) {
        w[j] = static_cast<int8_t>(b.weight[(static_cast<size_t>(tap) * b.inputs + group * 4 + j) * node.channels + i]);
        (w[j] > 0 ? more.up : more.down)[i] += std::abs(w[j]);
      }
      uint32_t key;
      std::memcpy(&key, w, 4);
      const auto [place, is_new] = known.emplace(key, static_cast<uint32_t>(b.tables.size()));
      for (int s = 0; is_new && s < 16; ++s)
        b.tables.push_back(static_cast<int8_t>((s & 1) * w[0] + (s >> 1 & 1) * w[1] + (s >> 2 & 1) * w[2] + (s >> 3) * w[3]));
      b.codes[(static_cast<size_t>(o / 4) * look_ups + k) * 4 + o % 4] = place->second;
      full = full || run.up[i] + more.up[i] > INT8_MAX || run.down[i] + more.down[i] > INT8_MAX;
      if ((all[i] += more.up[i] + more.down[i]) > INT16_MAX) return b.tables.clear(), b.codes.clear(), b.runs.clear();
    }
    if (full) b.runs.push_back(k), begin = k, run = more;
    else
      for (size_t i = 0; i < all.size(); ++i) run.up[i] += more.up[i], run.down[i] += more.down[i];
  }
  b.runs.push_back(look_ups);
}

}  // namespace nbsnn
