// Weights as look-up tables of the sums of any subset of a few of them.
#pragma once
#include "net.h"

namespace nbsnn {

// A part of an index byte: bits of the byte in which a plane has the spikes of four channels, moved by `left`.
struct Part {
  int quad, plane, mask, left;  // which four channels; which of the planes of the look-up
};

constexpr int kParts = 6;  // of an index, at most

inline bool is_signed(Kind kind) { return kind == kSigned || kind == kSignedFours; }
inline int planes_of_index(Kind kind) { return kind == kThreeBits ? 3 : is_signed(kind) || kind == kTwoBits ? 2 : 1; }
// What a spike of a plane of a look-up counts.
inline int factor_of(Kind kind, int plane) { return is_signed(kind) && plane ? -1 : 1 << plane; }

// In an index of kSignedFours, the sum of these of the four channels; a channel never has spikes of both signs.
constexpr int kDigits[4] = {1, 3, 9, 27};
constexpr int kDigitSums = 81;

// How many different indices there are, for so many groups of four channels, and the parts of one; returns how many parts.
int indices_of(Kind kind, int quads);
int parts_of(Kind kind, int quads, int index, Part (&parts)[kParts]);

// Sets the look-ups of a branch with small weights [tap][input][output], of one group. Look-ups go by index, then by tap. Returns
// whether there are tables: none if the sums of all look-ups, of positive and negative spikes together, could leave int16.
bool make_tables(const Node& node, Branch& b);

// The weight of input i of the four of a look-up of kQuads.
int weight_of(const Branch& b, int output, int look_up, int i);

// Sets look-ups in tables of 64 entries or more, from those of kQuads. None where the sums of counts could leave int16, and none of
// kSigned where there are those of kSignedFours, which are made first.
void make_wide_tables(const Net& net, const Node& node, const Branch& b, Kind kind);

}  // namespace nbsnn
