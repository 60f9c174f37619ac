#include "tables.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

namespace nbsnn {
namespace {

// Weights of one output in look-up k, which reads four neighboring inputs through one tap.
struct Four {
  int8_t w[4] = {0, 0, 0, 0};
  int up = 0, down = 0;  // sums of positive and of negative ones

  Four(const Node& node, const Branch& b, int output, int k) {
    const int first = k / b.taps * 4, tap = k % b.taps;
    for (int j = 0; j < 4 && first + j < b.inputs && output < node.channels; ++j) {
      const size_t row = static_cast<size_t>(tap) * static_cast<size_t>(b.inputs) + static_cast<size_t>(first + j);
      w[j] = static_cast<int8_t>(b.weight[row * static_cast<size_t>(node.channels) + static_cast<size_t>(output)]);
      (w[j] > 0 ? up : down) += std::abs(w[j]);
    }
  }
  uint32_t key() const {
    uint32_t bits;
    std::memcpy(&bits, w, 4);
    return bits;
  }
};

// Appends the sums of any subset of four weights.
void append_table(const Four& four, std::vector<int8_t>& tables) {
  for (int s = 0; s < 16; ++s) {
    int sum = 0;
    for (int j = 0; j < 4; ++j) sum += (s >> j & 1) * four.w[j];
    tables.push_back(static_cast<int8_t>(sum));
  }
}

}  // namespace

bool make_tables(const Node& node, Branch& b) {
  b.look_ups = b.taps * ((b.inputs + 3) / 4);
  b.tables.clear(), b.codes.clear(), b.runs.clear();
  if (b.load > INT16_MAX) return false;
  std::unordered_map<uint32_t, uint32_t> known;
  for (int quad = 0; quad * 4 < node.channels; ++quad) {
    b.runs.emplace_back();
    int up[4] = {}, down[4] = {};
    for (int k = 0, begin = 0; k < b.look_ups; ++k) {
      const Four fours[4] = {
          {node, b, 4 * quad, k}, {node, b, 4 * quad + 1, k}, {node, b, 4 * quad + 2, k}, {node, b, 4 * quad + 3, k}};
      bool full = k % kMaxRun == 0;
      for (int o = 0; o < 4; ++o) full = full || up[o] + fours[o].up > INT8_MAX || down[o] + fours[o].down > INT8_MAX;
      if (full && k) b.runs.back().push_back(k - begin);
      if (full) begin = k;
      for (int o = 0; o < 4; ++o) {
        up[o] = (full ? 0 : up[o]) + fours[o].up, down[o] = (full ? 0 : down[o]) + fours[o].down;
        const auto [place, is_new] = known.emplace(fours[o].key(), static_cast<uint32_t>(b.tables.size()));
        if (is_new) append_table(fours[o], b.tables);
        b.codes.push_back(place->second);
      }
      if (k + 1 == b.look_ups) b.runs.back().push_back(b.look_ups - begin);
    }
  }
  return true;
}

}  // namespace nbsnn
