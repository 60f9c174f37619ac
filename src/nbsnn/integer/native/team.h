// A team of threads that takes flights of images through a network, node by node.
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

#include "targets.h"
#include "ways.h"

namespace nbsnn {

template <class F>
void spin_until(F&& done) {
  for (int spins = 0; !done(); ++spins)
    if (spins > 1000) std::this_thread::yield();
}

// A barrier for a few threads that are rarely far apart; their number may differ for each use.
class Barrier {
 public:
  void wait(int members) {
    if (members == 1) return;
    const int turn = turn_.load();
    if (waiting_.fetch_add(1) + 1 == members) {
      waiting_.store(0);
      turn_.fetch_add(1);
    } else {
      spin_until([&] { return turn_.load() != turn; });
    }
  }

 private:
  std::atomic<int> waiting_{0}, turn_{0};
};

// One team takes its flights through the network; a team of several shares each node's tiles. Its leader does not wait for
// members that have not started: they join at the next node. Starting a thread may take longer than a small network takes.
struct Team {
  const Net& net;
  const Request& ask;
  const Kernel& kernel;
  const int size;
  std::unique_ptr<Workspace> space;
  Flight& flight;
  Pool& pool;
  std::vector<Scratch>& scratch;
  Barrier barrier;
  alignas(64) std::atomic<int> next{0}, next_record{0};
  alignas(64) std::atomic<uint64_t> call{0};  // nodes opened so far · 2^16 + members that work on the last one
  std::atomic<int> arrived{1};
  size_t open = 0;  // that node
  std::atomic<bool> failed{false};

  Team(const Net& n, const Request& a, int s)
      : net(n),
        ask(a),
        kernel(kernel_of(n.target)),
        size(s),
        space(n.workspaces.take()),
        flight(space->flight),
        pool(space->pool),
        scratch(space->scratch) {
    if (scratch.size() < static_cast<size_t>(s)) scratch.resize(static_cast<size_t>(s));
  }
  ~Team() {
    if (!failed.load()) net.workspaces.give(std::move(space));
  }

  void begin_flight(int first, int images) {
    flight.first = first, flight.images = images;
    choose_ways(net, kernel, flight);
    flight.values.assign(net.nodes.size(), Value{});
    load_pixels(net, ask, flight);
    for (int i = 0; i < images; ++i) ask.steps[first + i] = net.timesteps;
  }

  void begin_node(size_t index) {
    const Node& node = net.nodes[index];
    Value& value = flight.values[index];
    next.store(0), next_record.store(0);
    for (Scratch& s : scratch) {
      s.last.assign(static_cast<size_t>(flight.images), 0), s.spikes.assign(static_cast<size_t>(flight.images), 0);
      s.lists.tile = -1;
    }
    if (node.head) return;
    const bool two = ask.mode == kFixedSigned || ask.mode == kSettle;
    value.lanes = lanes_of(ask, node, inputs_of(net, ask, flight, node));
    value.chunks = (value.lanes + kLanes - 1) / kLanes;
    value.last.assign(static_cast<size_t>(flight.images), 0);
    if (flight.records_read[index]) {
      value.record = node.record(two);
      value.records =
          pool.take(static_cast<size_t>(flight.images) * value.chunks * node.positions * node.groups() * value.record * 2);
    }
    value.signs = two ? 2 : 1;
    if (flight.dense[index] || flight.planes_read[index]) take_planes(node, flight, value, pool);
  }

  void end_node(size_t index) {
    Value& value = flight.values[index];
    for (int i = 0; i < flight.images && !net.nodes[index].head; ++i)
      for (const Scratch& s : scratch) {
        const int last = s.last[static_cast<size_t>(i)];
        if (last > value.last[static_cast<size_t>(i)]) value.last[static_cast<size_t>(i)] = last;
        ask.spikes[index * static_cast<size_t>(ask.batch) + flight.first + i] += s.spikes[static_cast<size_t>(i)];
        if (ask.mode == kSettle && last > ask.steps[flight.first + i]) ask.steps[flight.first + i] = last;
      }
    for (size_t i = 0; i <= index; ++i)
      if (net.nodes[i].last_use <= static_cast<int>(index))
        for (Buffer** buffer : {&flight.values[i].records, &flight.values[i].planes})
          if (*buffer) pool.idle.push_back(*buffer), *buffer = nullptr;
  }

  // Takes one flight through all nodes. After a failure (no memory) all members go on to the end, idle.
  void lead(int first, int images) {
    guard([&] { begin_flight(first, images); });
    for (open = 0; open < net.nodes.size(); ++open) {
      const auto begun = std::chrono::steady_clock::now();
      guard([&] { begin_node(open); });
      const int members = std::min(arrived.load(), size);
      call.store(((call.load() >> 16) + 1) << 16 | static_cast<uint64_t>(members));
      work_on(open, 0, members);
      guard([&] { end_node(open); });
      if (ask.nanoseconds) {  // teams that go their own ways add to the same numbers
        const auto taken = std::chrono::nanoseconds(std::chrono::steady_clock::now() - begun).count();
        __atomic_fetch_add(ask.nanoseconds + open, taken, __ATOMIC_RELAXED);
      }
    }
  }

  // What member `rank` > 0 does until the run is closed.
  void help(int rank, const std::atomic<bool>& closed) {
    const int ticket = arrived.fetch_add(1);
    for (uint64_t seen = 0;;) {
      spin_until([&] { return closed.load() || call.load() != seen; });
      if (closed.load()) return;
      seen = call.load();
      const int members = static_cast<int>(seen & 0xffff);
      if (ticket < members) work_on(open, rank, members);
    }
  }

  void work_on(size_t index, int rank, int members) {
    const Node& node = net.nodes[index];
    const int number = static_cast<int>(index), images = flight.images;
    Scratch& mine = scratch[static_cast<size_t>(rank)];
    if (flight.dense[index]) {
      const Shape shape = block_of(net, ask, flight, number, kernel.vector, members);
      share(next, static_cast<int>(round_up(images * node.positions, kernel.vector)), shape.places, number,
            (node.channels + shape.channels - 1) / shape.channels, shape.channels,
            [&](const Item& item) { kernel.run_planes(net, ask, flight, mine, item); });
      if (flight.records_read[index]) {
        barrier.wait(members);
        share(next_record, images * node.positions, 1, number, 1, 0,
              [&](const Item& item) { kernel.run_records(net, flight, item); });
      }
    } else {
      int tile = kTile;
      while (members > 1 && tile > 1 && (images * node.positions + tile - 1) / tile * node.groups() < 2 * members) tile /= 2;
      share(next, images * node.positions, tile, number, node.groups(), kGroup,
            [&](const Item& item) { kernel.run_tile(net, ask, flight, mine, item); });
    }
    barrier.wait(members);
  }

  // Calls `work` for each item that this member draws: `all` positions in tiles, times `groups` of `block` channels.
  template <class F>
  void share(std::atomic<int>& from, int all, int tile, int node, int groups, int block, F&& work) {
    const int items = (all + tile - 1) / tile * groups;
    for (int i = from.fetch_add(1); i < items; i = from.fetch_add(1)) {
      const int begin = i / groups * tile, end = begin + tile < all ? begin + tile : all;
      guard([&] { work(Item{node, begin, end, i % groups, block}); });
    }
  }

  template <class F>
  void guard(F&& work) {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      work();
    } catch (const std::bad_alloc&) {
      failed.store(true);
    }
  }
};

}  // namespace nbsnn
