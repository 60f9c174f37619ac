#include "tables.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

namespace nbsnn {
namespace {

constexpr size_t kMostTables = 2048;  // of 64 entries, which should stay in the second cache

// The weights that an index picks from, those of one output: [bit of the index].
struct Weights {
  int8_t w[8] = {};
  int up = 0, down = 0;  // sums of positive and of negative ones

  uint64_t key() const {
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | static_cast<uint8_t>(w[i]);
    return bits;
  }
};

// Reads the weights of look-ups of one kind; `weight(output, input, tap)` has those of the branch.
template <class F>
struct Reader {
  const Node& node;
  const Branch& b;
  const Kind kind;
  const F& weight;

  // Whether all sums of subsets fit int8.
  bool read(int output, int k, Weights& to) const {
    Part parts[kParts];
    const int n = parts_of(kind, (b.inputs + 3) / 4, k / b.taps, parts);
    to = Weights{};
    for (int i = 0; i < n; ++i)
      for (int c = 0; c < 4; ++c) {
        const int input = 4 * parts[i].quad + c;
        if (!(parts[i].mask >> c & 1) || input >= b.inputs || output >= node.channels) continue;
        const int w = weight(output, input, k % b.taps) * factor_of(kind, parts[i].plane);
        if (std::abs(w) > INT8_MAX) return false;
        to.w[c + parts[i].left] = static_cast<int8_t>(w);
        (w > 0 ? to.up : to.down) += std::abs(w);
      }
    return to.up <= INT8_MAX && to.down <= INT8_MAX;
  }
};

// Bounds of the sums of four outputs in a run: those of kQuads are signed bytes, the others begin so far above zero that they are
// unsigned ones.
struct RunBounds {
  const Kind kind;
  int up[4] = {}, down[4] = {}, n = 0;

  explicit RunBounds(Kind k) : kind(k) {}
  bool fit(const Weights (&more)[4]) const {
    bool fits = true;
    for (int o = 0; o < 4; ++o) {
      const int above = up[o] + more[o].up, below = down[o] + more[o].down;
      fits = fits && (kind == kQuads ? above <= INT8_MAX && below <= INT8_MAX : above + below <= UINT8_MAX);
    }
    return fits;
  }
  void add(const Weights (&more)[4]) {
    for (int o = 0; o < 4; ++o) up[o] += more[o].up, down[o] += more[o].down;
    ++n;
  }
  void end(std::vector<int>& runs, std::vector<uint8_t>& below) {
    runs.push_back(n);
    for (int o = 0; o < 4 && kind != kQuads; ++o) below.push_back(static_cast<uint8_t>(down[o]));
    n = 0, std::fill(up, up + 4, 0), std::fill(down, down + 4, 0);
  }
};

// Appends the sums for every index.
void append_table(const Weights& weights, Kind kind, std::vector<int8_t>& tables) {
  const int bits = kind == kQuads ? 4 : 6;
  for (int index = 0; kind != kSignedFours && index < 1 << bits; ++index) {
    int sum = 0;
    for (int bit = 0; bit < bits; ++bit) sum += (index >> bit & 1) * weights.w[bit];
    tables.push_back(static_cast<int8_t>(sum));
  }
  for (int index = 0; kind == kSignedFours && index < 128; ++index) {
    int sum = 0;
    for (int c = 0; c < 4 && index < kDigitSums; ++c)
      if (const int digit = index / kDigits[c] % 3) sum += weights.w[c + 4 * (digit - 1)];
    tables.push_back(static_cast<int8_t>(sum));
  }
}

// Look-ups of one kind; none if a sum of a table does not fit int8, or if there are more than so many tables.
template <class F>
Lookups make_lookups(const Node& node, const Branch& b, Kind kind, size_t most, const F& weight) {
  const Reader<F> reader{node, b, kind, weight};
  Lookups out;
  out.size = b.taps * indices_of(kind, (b.inputs + 3) / 4);
  std::unordered_map<uint64_t, size_t> known;
  std::vector<int8_t> tables;
  for (int quad = 0; quad * 4 < node.channels; ++quad) {
    out.runs.emplace_back(), out.below.emplace_back();
    RunBounds bounds(kind);
    for (int k = 0; k < out.size; ++k) {
      Weights weights[4];
      for (int o = 0; o < 4; ++o)
        if (!reader.read(4 * quad + o, k, weights[o])) return {};
      if (k && (k % kMaxRun == 0 || !bounds.fit(weights))) bounds.end(out.runs.back(), out.below.back());
      bounds.add(weights);
      for (const Weights& w : weights) {
        const auto [place, is_new] = known.emplace(w.key(), known.size());
        if (is_new && known.size() > most) return {};
        if (is_new) append_table(w, kind, tables);
        if (kind == kQuads) out.begins.push_back(static_cast<uint32_t>(place->second << 4));
        else out.numbers.push_back(static_cast<uint16_t>(place->second));
      }
    }
    bounds.end(out.runs.back(), out.below.back());
  }
  std::memcpy(out.tables.need(tables.size()), tables.data(), tables.size());
  return out;
}

}  // namespace

int indices_of(Kind kind, int quads) {
  if (kind == kQuads || kind == kSignedFours) return quads;
  if (kind == kThreeBits) return 2 * quads;
  const int rest = quads % 3;
  if (kind == kSixes) return quads / 3 * 2 + rest;
  return quads / 3 * 4 + (rest ? rest + 1 : 0);
}

int parts_of(Kind kind, int quads, int index, Part (&parts)[kParts]) {
  int n = 0;
  const auto add = [&](int quad, int plane, int mask, int left) {
    if (quad < quads) parts[n++] = Part{quad, plane, mask, left};
  };
  if (kind == kQuads) {
    add(index, 0, 15, 0);
  } else if (kind == kSignedFours) {
    for (int plane = 0; plane < 2; ++plane) add(index, plane, 15, 4 * plane);
  } else if (kind == kThreeBits) {  // two channels of three planes
    const int low = index % 2 * 2;
    for (int plane = 0; plane < 3; ++plane) add(index / 2, plane, 3 << low, 2 * plane - low);
  } else if (kind == kSixes) {  // of three quads, the first or the last and half of the middle one
    const int first = index / 2 * 3, half = index % 2 * 2;
    add(first + half, 0, 15, 0);
    add(first + 1, 0, 3 << half, 4 - half);
  } else {  // three channels of one quad, or the fourth channels of up to three quads; two planes
    const int first = index / 4 * 3, in_group = std::min(3, quads - first), at = index % 4;
    for (int plane = 0; plane < 2; ++plane) {
      if (at < in_group) add(first + at, plane, 7, 3 * plane);
      for (int i = 0; i < in_group && at == in_group; ++i) add(first + i, plane, 8, 3 * plane + i - 3);
    }
  }
  return n;
}

bool make_tables(const Node& node, Branch& b) {
  b.lookups[kQuads] = {};
  if (b.load > INT16_MAX) return false;
  const auto weight = [&](int output, int input, int tap) {
    const size_t row = static_cast<size_t>(tap) * static_cast<size_t>(b.inputs) + static_cast<size_t>(input);
    return static_cast<int>(b.weight[row * static_cast<size_t>(node.channels) + static_cast<size_t>(output)]);
  };
  b.lookups[kQuads] = make_lookups(node, b, kQuads, SIZE_MAX, weight);
  return b.lookups[kQuads].size > 0;
}

int weight_of(const Branch& b, int output, int look_up, int i) {
  const Lookups& quads = b.lookups[kQuads];
  const size_t four = static_cast<size_t>(output / 4) * static_cast<size_t>(quads.size) + static_cast<size_t>(look_up);
  const uint32_t begin = quads.begins[four * 4 + static_cast<size_t>(output % 4)];
  return static_cast<int8_t>(quads.tables.data.get()[begin + (1u << i)]);  // of the subset of this one
}

void make_wide_tables(const Net& net, const Node& node, const Branch& b, Kind kind) {
  if (kind == kSigned && b.lookups[kSignedFours].size) return;
  const auto weight = [&](int output, int input, int tap) { return weight_of(b, output, input / 4 * b.taps + tap, input % 4); };
  const int bits = bits_in(net.nodes[static_cast<size_t>(b.source)].levels), planes = planes_of_index(kind);
  const bool counts = kind == kTwoBits || kind == kThreeBits;
  if (counts && (planes > bits || int64_t{b.load} * ((1 << planes) - 1) > INT16_MAX)) return;
  b.lookups[kind] = make_lookups(node, b, kind, kMostTables, weight);
}

}  // namespace nbsnn
