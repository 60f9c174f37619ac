// What a run holds of the images that it takes through a network together, and the scratch memory of one worker.
//
// A value's events lie in records, one per (image, chunk, position, channel group). A chunk is up to three consecutive lanes:
// time steps, or bits of a count in the `counts` mode. The channels of a record are sorted by the pattern of lanes in which they
// are active, so that a weight row is loaded once for all lanes of the chunk. Layout of a record, uint16:
//     [0..6] how many channels with the positive pattern 1..7, [7..13] negative pattern 1..7, [14] all negative, [15] all;
//     then the channels, in this order, relative to the group's first.
#pragma once
#include "net.h"

namespace nbsnn {

// Buffers that later nodes use again, so that memory is that of the values alive at a time.
struct Pool {
  std::vector<std::unique_ptr<Buffer>> all;
  std::vector<Buffer*> idle;
  Buffer* take(size_t bytes) {
    Buffer* best = nullptr;
    for (Buffer* b : idle)
      if (!best || (b->bytes >= bytes && (best->bytes < bytes || b->bytes < best->bytes))) best = b;
    if (!best) {
      all.push_back(std::make_unique<Buffer>());
      best = all.back().get();
    } else {
      idle.erase(std::find(idle.begin(), idle.end(), best));
    }
    best->need(bytes);
    return best;
  }
};

// Events of one node for the images in flight.
struct Value {
  Buffer *records = nullptr, *planes = nullptr;
  std::vector<uint8_t> used;     // planes with any spike
  std::vector<int64_t> fired;    // spikes of each plane
  int signs = 1;                 // planes per lane: 2 where there are negative spikes
  int quads = 0;                 // bytes of a position in a plane: one for four channels
  size_t front = 0, stride = 0;  // bytes before the first row of a plane, and from one row (quad) to the next
  int chunks = 0;
  int lanes = 0;                     // of all chunks
  int64_t record = 0;                // uint16 per record
  std::vector<int> last;             // per image: the last step with a spike, from 1; 0 if silent
  int live_chunks(int mode) const {  // with anything in them
    if (mode != kSettle) return chunks;
    int most = 0;
    for (int step : last) most = step > most ? step : most;
    return (most + kLanes - 1) / kLanes;
  }
  uint8_t* row(int plane, int quad) const {
    return planes->data.get() + front + (static_cast<size_t>(plane) * quads + quad) * stride;
  }
  uint16_t* at(const Node& node, int image, int chunk, int position, int group) const {
    const int64_t index = ((static_cast<int64_t>(image) * chunks + chunk) * node.positions + position) * node.groups() + group;
    return reinterpret_cast<uint16_t*>(records->data.get()) + index * record;
  }
};

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel of an OpenMP library

struct Request {
  const int32_t* images;  // [batch, image_channels, pixels]
  const float* floats;    // in place of these, or null
  int batch, mode, threads;
  int32_t* const* counts;  // per node [batch, channels, positions], or null
  int64_t* sums;           // per branch of the heads, in order, [batch, channels, positions]
  int64_t* steps;          // [batch]
  int64_t* spikes;         // per node [batch]
  int64_t* nanoseconds;    // per node, or null: what each took, added up over flights
  Parallel pool;           // where threads come from; null: new ones
};

// Images that one worker, or a team of workers, takes through the network together.
struct Flight {
  int first = 0, images = 0;
  std::vector<Value> values;
  std::vector<uint8_t> dense, records_read, planes_read;  // of each node: computed from planes; what its readers take
  Buffer pixels;  // int32 [channel][image][pixel], each channel with `margin` in front and behind
  size_t margin = 0;
  const int32_t* channel(const Net& net, int c) const {
    const size_t row = static_cast<size_t>(images) * net.pixels + 2 * margin;
    return reinterpret_cast<const int32_t*>(pixels.data.get()) + static_cast<size_t>(c) * row + margin;
  }
};

// The spikes of one plane and position of a tile, whose rows of weights begin at `begin`.
struct List {
  int position, lane, n;  // in a tile and a chunk
  bool negative;
  size_t begin;
};

// The spikes that a tile sees of a branch in one chunk.
struct Listed {
  const Branch* branch;
  int chunk;
  std::vector<uint32_t> rows;
  std::vector<List> lists;
};

// Those of all branches and chunks of the tile under work, which all its channels read.
struct Lists {
  int tile = -1;  // its first place
  size_t used = 0;
  std::vector<Listed> all;
};

struct Scratch {
  Buffer bytes, words, current, membrane, count, joined, constant, wide, code, columns, stage, merged, spikes_seen;
  Lists lists;
  std::vector<uint32_t> rows;   // of weights: lists of spikes of a block
  std::vector<int64_t> spikes;  // per image of the flight, of the node under work
  std::vector<int> last;        // likewise
};

// What a team of workers needs for a flight.
struct Workspace {
  Flight flight;
  Pool pool;
  std::vector<Scratch> scratch;  // of each member
};

// One output tile: positions [begin, end) of (image, position) flattened, and block `group` of so many channels.
struct Item {
  int node, begin, end, group, block;
};

// What a kernel compiled for an instruction set offers.
struct Kernel {
  int vector;  // bytes; without run_planes no node is computed from planes
  bool wide;   // has look-ups in tables of 64 entries
  void (*pack)(const Node&, Branch&, bool lists);
  bool (*load_pixels)(const Net&, const Request&, Flight&);  // false if they are refused
  void (*run_tile)(const Net&, const Request&, Flight&, Scratch&, const Item&);
  void (*run_planes)(const Net&, const Request&, Flight&, Scratch&, const Item&);
  void (*run_records)(const Net&, Flight&, const Item&);
};

// Steps in which a node may receive something, its bias in the first T ones.
int inputs_of(const Net& net, const Request& ask, const Flight& flight, const Node& node);

// Steps, or bits of a count, in which a node may send spikes; in settle in multiples of a chunk.
int lanes_of(const Request& ask, const Node& node, int inputs);

// A value's planes, with room before and behind each row for what shifted vectors touch of its neighbors.
void take_planes(const Node& node, const Flight& flight, Value& value, Pool& pool);

// How many places and channels a block of a node has: sums that fit the second cache, and enough blocks for all members.
struct Shape {
  int places, channels;
};

Shape block_of(const Net& net, const Request& ask, const Flight& flight, int index, int vector, int members);

}  // namespace nbsnn
