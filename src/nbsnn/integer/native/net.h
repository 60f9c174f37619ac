// An integer network as the kernels hold it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

namespace nbsnn {

constexpr int kLanes = 3;         // lanes that share one load of a weight row
constexpr int kTile = 16;         // output positions that share a weight block while it is in the first cache
constexpr int kGroup = 512;       // channels of a record at most, so that one tap's weight block stays small
constexpr int kHeader = 16;       // uint16 in front of a record's channels
constexpr int kSlack = 16;        // uint16 behind them, which the vectorised writer may touch
constexpr int kMaxRow = 256;      // the longest weight row in bytes, any instruction set
constexpr int kMaxVector = 64;    // the longest vector in bytes
constexpr int kMaxRun = 72;       // look-ups that are gathered at a time: their indices fit the first cache
constexpr int kCountRow = 8;      // counts in a row of thresholds: one byte shuffle of int16
constexpr int kBlockLanes = 256;  // places of a block of a node computed from planes, at most
constexpr int kImageSteps = 63;   // of nodes that read nothing but the image (image.inc): twice a count fits an int8

enum Mode : int32_t { kFixedUnsigned, kFixedSigned, kSettle, kBarrier, kCounts, kModes };

inline int bits_in(int levels) { return 32 - __builtin_clz(static_cast<unsigned>(levels)); }
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Plain memory that is not cleared, and kept from one flight to the next.
struct Buffer {
  std::unique_ptr<uint8_t, decltype(&std::free)> data{nullptr, &std::free};
  size_t bytes = 0;
  uint8_t* need(size_t n) {
    if (n > bytes) {
      data.reset();
      bytes = 0;
      data.reset(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(round_up(static_cast<int64_t>(n), 64)))));
      if (!data) throw std::bad_alloc();
      bytes = n;
    }
    return data.get();
  }
};

// A copy of bytes of a plane, of one image: `count` of them, `step` apart in the source, to consecutive places.
struct Segment {
  int32_t to, from, count, step;
};

// How the look-up indices of a branch are gathered (gathering.h). A tap reads, at place p of an image, place p + shift of its phase.
struct Gathering {
  bool direct = false;                       // the only phase is the source itself
  std::vector<std::vector<Segment>> phases;  // each a list of as many source positions as the node has, in rising order
  std::vector<int> phase, shift;             // of each tap
  std::vector<uint8_t> valid;                // [tap][row]: 0xff at places that read something, for a vector from any place on
  int row = 0;
  int lowest = 0, highest = 0;  // shift
};

// What the index of a look-up holds (tables.h): spikes of four inputs, or, where tables have 64 entries, of six; signed spikes of three;
// counts of three inputs of two bits, or of two inputs of three bits; or signed spikes of four, of which 81 of 128 entries are used.
enum Kind : int32_t { kQuads, kSixes, kSigned, kTwoBits, kThreeBits, kSignedFours, kKinds };

// The weights of a branch as look-ups of one kind. None if they do not serve.
struct Lookups {
  int size = 0;                             // look-ups of an output, one for each index and tap
  Buffer tables;                            // the different ones, of 16 sums (kQuads), 64, or 128 (kSignedFours)
  std::vector<uint32_t> begins;             // kQuads: [output / 4][look-up][output % 4], where its table begins
  std::vector<uint16_t> numbers;            // other kinds, likewise: which table
  std::vector<std::vector<int>> runs;       // of four outputs: how many look-ups at a time their sums may stay in eight bits
  std::vector<std::vector<uint8_t>> below;  // other kinds: how far below zero these sums may be, [run · 4 + output]
};

// Whole weights of eight bits for products with counts or spikes (dots.h). None if they do not serve.
struct Dots {
  int branches = 0;            // whose digits they are: this one and the next ones
  int words = 0, apart = 0;    // of an output, a multiple of the depth; see DotRun
  int64_t load = 0;            // largest sum of |weights| of an output
  std::vector<int32_t> total;  // sum of the weights of an output
  size_t group_stride = 0;
  Buffer weights;
};

struct Branch {
  int source;  // node, or -1: the image, constant in time
  int inputs;  // channels of the source
  int groups, taps;
  bool rows;  // int8 rows added in int8 registers; otherwise rows are added to 32 bits
  int row_bytes = 0;
  int shift;
  int wmax;                           // largest |weight|
  int load = 0;                       // largest sum of |weights| of an output
  std::vector<uint32_t> start, from;  // input positions of (tap, output position): from[start[tap * positions + position] ..]
  std::vector<int64_t> multiplier;    // [channels], padded with zeros
  std::vector<int32_t> multiplier32;
  std::vector<int16_t> weight;      // [tap][input][output of the group]
  bool identity = false;            // acc is the source's own value
  bool is_digit = false;            // the weights are further digits of the branch before: of its weights, Σ 16^i · digit
  std::vector<double> exact;        // constant: `weight` as doubles; empty if sums or products could grow too large for them
  mutable Lookups lookups[kKinds];  // those of kQuads from the start, the others by prepare_mode
  mutable Dots dots;                // by prepare_mode
  Gathering gathering;
  Buffer blocks;   // rows: [block][tap][input][row_bytes], bytes of a vector interleaved for the spill
  int fields = 0;  // weights in a byte of rows that are added for lists of spikes (lists.inc); 0: for records

  const int8_t* block(int number) const {
    return reinterpret_cast<const int8_t*>(blocks.data.get()) + static_cast<size_t>(number) * taps * inputs * row_bytes;
  }
};

// Thresholds in 16 bits (thresholds.h), [channel][row][count].
struct Thresholds {
  int weighted = 0, identity = -1;     // branches
  size_t stride = 0;                   // of a channel
  std::vector<int16_t> fixed, settle;  // empty if the neurons need 32 bits
};

struct Node {
  bool head;
  bool wide;
  int channels, positions, levels, fraction_bits;
  int64_t retract;
  std::vector<int64_t> bias;  // [channels], or [channels][positions]
  std::vector<Branch> branches;
  Thresholds thresholds;
  // Of a node that reads nothing but the image, where single precision serves (image.inc), in heights: [channel / 4][row][channel % 4],
  // the bias and the weights of all branches; [channel], how far off their sums may be.
  std::vector<float> drive, margin;
  int last_use = -1;
  int pool = 0;         // 1: the maximum of the counts of its only branch's source; -1: the minimum; 0: neurons, or a head
  int64_t first_sum = 0;  // of a head: where those of an image begin among the sums of all heads' branches
  bool planes = false;  // can be computed from bit planes

  int64_t bias_of(int channel, int position) const {
    const bool one = bias.size() == static_cast<size_t>(channels);
    return bias[one ? static_cast<size_t>(channel)
                    : static_cast<size_t>(channel) * static_cast<size_t>(positions) + static_cast<size_t>(position)];
  }
  int64_t outputs() const { return static_cast<int64_t>(branches.size()) * channels * positions; }  // of a head
  int groups() const { return (channels + kGroup - 1) / kGroup; }
  int width() const { return channels < kGroup ? channels : kGroup; }  // of the first group
  int64_t record(bool both_signs) const {                              // uint16 per record
    return round_up(kHeader + kSlack + static_cast<int64_t>(width()) * (both_signs ? 2 : 1), 32);
  }
};

// The integers that images become: round(value · scale), moved by at most `slack` to be from low to high.
struct Grid {
  int32_t low = 0, high = 0;
  float scale = 0, slack = 0;  // scale is a power of two; 0 where single precision does not hold the integers

  int64_t bound() const { return std::max(-static_cast<int64_t>(low), static_cast<int64_t>(high)); }
};

struct Workspace;

// Workspaces of earlier runs, which later ones use again: fresh memory costs as much as some layers.
class Workspaces {
 public:
  Workspaces();
  ~Workspaces();
  std::unique_ptr<Workspace> take();
  void give(std::unique_ptr<Workspace> space);

 private:
  std::mutex lock_;
  std::vector<std::unique_ptr<Workspace>> idle_;
};

struct Net {
  int target = 0, timesteps = 0, pixels = 0, image_channels = 0;
  Grid grid;
  bool finished = false;
  std::vector<Node> nodes;            // the heads are last
  std::vector<double> bias, factors;  // of the only head, if its bias + sum · factor is the network's result
  mutable Workspaces workspaces;
  mutable std::once_flag prepared[kKinds + 1];  // look-ups, then products, by prepare_mode
};

}  // namespace nbsnn
