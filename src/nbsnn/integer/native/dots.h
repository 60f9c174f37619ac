// Products of counts, or spikes, and weights of eight bits, four inputs at a time, by the instructions that a processor has for them.
//
// A word holds the counts of four inputs at one place. Words are gathered as the indices of look-ups are (gather.inc), some of them
// for one vector of places at a time: words[k][strip][lane] is of place 4 · lane + strip, so a strip has a quarter of a vector's places.
#pragma once
#include "net.h"

namespace nbsnn {

constexpr int kDotStrips = 4;
constexpr int kDotRun = 64;      // words of a place that are gathered at a time: a vector's 16 KB stay in the first cache
constexpr int kDotOutputs = 16;  // that share a tile at most: sums have room for so many beyond the last
constexpr int kMostDotWeight = 127;
constexpr int kMostDotCount = 127;  // so that two products fit 16 bits

// Some words of a vector of places, and the outputs that read them.
struct DotRun {
  const uint8_t* words;
  int n;                  // of a place: a multiple of the instruction's depth
  int apart;              // how many of them 16 bits can sum
  const int8_t* weights;  // of the first outputs and the first word
  size_t group_stride;    // from the weights of some outputs to those of the next, as many as the instruction takes together
  int groups;
  int32_t* sums;  // [output][strip][lane]
  size_t output_stride;
  bool first;  // sums are written; otherwise they are added to
};

struct DotProduct {
  int vector;          // bytes of the kernel's vectors that it serves
  int outputs, depth;  // how many outputs and words its weights have together: [outputs][words][4]
  double cycles;       // of a word and an output at a vector of places, estimated
  bool (*exists)();    // on this processor
  void (*run)(const DotRun& run);
};

extern const DotProduct kPairs256, kPairs512, kDots256, kDots512, kDotTiles, kDots128;

// The whole weights of branch `first` of a node and of the branches with their further digits, for an instruction; [group of
// outputs][word / depth][output][word % depth][input]. None if they, or the counts that they multiply, are too large.
Dots make_dots(const Net& net, const Node& node, size_t first, const DotProduct& product);

}  // namespace nbsnn
