// A team of threads that takes flights of images through a network, node by node.
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

#include "targets.h"
#include "ways.h"

namespace nbsnn {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class F>
void spin_until(F&& done) {
  constexpr int kSpins = 500;  // some 10 µs: longer than threads that run are apart
  for (int spins = 0; !done(); ++spins) spins < kSpins ? relax() : std::this_thread::yield();
}

// The same work for each item [0, items): `all` positions in tiles, times `groups` of `block` channels.
struct Phase {
  bool records;
  int node, all, tile, groups, block;
  int items() const { return (all + tile - 1) / tile * groups; }
  Item item(int i) const {
    const int begin = i / groups * tile;
    return Item{node, begin, std::min(begin + tile, all), i % groups, block};
  }
};

// Items of a phase that were not drawn yet, of the part of one member, which then reads much of what it wrote itself before. The
// number of the phase is next to them, so that a member that comes late draws nothing of a later phase that it does not know.
struct alignas(64) Part {
  std::atomic<uint64_t> left{0};  // phase · 2^32 + items

  void open(uint32_t phase, int items) { left.store(uint64_t{phase} << 32 | static_cast<uint32_t>(items), std::memory_order_release); }
  // How many there were before this one, or 0.
  int draw(uint32_t phase) {
    uint64_t now = left.load(std::memory_order_acquire);
    while (now >> 32 == phase && static_cast<uint32_t>(now))
      if (left.compare_exchange_weak(now, now - 1, std::memory_order_acquire)) return static_cast<int>(static_cast<uint32_t>(now));
    return 0;
  }
};

// One team takes its flights through the network; a team of several shares each node's tiles. Its leader waits for tiles that others
// have drawn, not for threads that have not started, or that the system has stopped meanwhile: they join at the next node.
struct Team {
  const Net& net;
  const Request& ask;
  const Kernel& kernel;
  const int size;
  std::unique_ptr<Workspace> space;
  Flight& flight;
  Pool& pool;
  std::vector<Scratch>& scratch;
  const std::unique_ptr<Part[]> parts;                  // of each member
  alignas(64) std::atomic<uint64_t> call{0};            // phases so far · 2^16 + members that have a part of the last one
  alignas(64) std::atomic<int> arrived{1}, done{0};     // members; items of the phase that others than the leader have done
  Phase phase{};                                        // which changes only when all of its items are done
  std::atomic<bool> failed{false}, refused{false};      // the second if the images are the reason

  Team(const Net& n, const Request& a, int s)
      : net(n),
        ask(a),
        kernel(kernel_of(n.target)),
        size(s),
        space(n.workspaces.take()),
        flight(space->flight),
        pool(space->pool),
        scratch(space->scratch),
        parts(new Part[static_cast<size_t>(s)]) {
    if (scratch.size() < static_cast<size_t>(s)) scratch.resize(static_cast<size_t>(s));
  }
  ~Team() {
    if (!failed.load()) net.workspaces.give(std::move(space));
  }

  void begin_flight(int first, int images) {
    flight.first = first, flight.images = images;
    choose_ways(net, kernel, flight);
    flight.values.assign(net.nodes.size(), Value{});
    if (!kernel.load_pixels(net, ask, flight)) refused.store(true), failed.store(true);
    for (int i = 0; i < images; ++i) ask.steps[first + i] = net.timesteps;
  }

  void begin_node(size_t index) {
    const Node& node = net.nodes[index];
    Value& value = flight.values[index];
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

  // Takes one flight through all nodes. After a failure (no memory, or images that are refused) items do nothing.
  void lead(int first, int images) {
    guard([&] { begin_flight(first, images); });
    for (size_t i = 0; i < net.nodes.size(); ++i) {
      const auto begun = std::chrono::steady_clock::now();
      guard([&] { begin_node(i); });
      compute(i);
      guard([&] { end_node(i); });
      if (ask.nanoseconds) {  // teams that go their own ways add to the same numbers
        const auto taken = std::chrono::nanoseconds(std::chrono::steady_clock::now() - begun).count();
        __atomic_fetch_add(ask.nanoseconds + i, taken, __ATOMIC_RELAXED);
      }
    }
  }

  void compute(size_t index) {
    if (failed.load()) return;
    const Node& node = net.nodes[index];
    const int number = static_cast<int>(index), places = flight.images * node.positions, members = std::min(arrived.load(), size);
    if (flight.dense[index]) {
      const Shape shape = block_of(net, ask, flight, number, kernel.vector, members);
      run({false, number, static_cast<int>(round_up(places, kernel.vector)), shape.places,
           (node.channels + shape.channels - 1) / shape.channels, shape.channels}, members);
      if (flight.records_read[index]) run({true, number, places, kTile, 1, 0}, members);
    } else {
      int tile = kTile;
      while (members > 1 && tile > 1 && (places + tile - 1) / tile * node.groups() < 2 * members) tile /= 2;
      run({false, number, places, tile, node.groups(), kGroup}, members);
    }
  }

  // Opens a phase, and returns when it is done.
  void run(const Phase& next, int members) {
    phase = next;
    done.store(0, std::memory_order_relaxed);
    const int items = phase.items();
    const uint64_t number = (call.load(std::memory_order_relaxed) >> 16) + 1;
    for (int m = 0; m < members; ++m)
      parts[static_cast<size_t>(m)].open(static_cast<uint32_t>(number), begin_of(m + 1, members) - begin_of(m, members));
    call.store(number << 16 | static_cast<uint64_t>(members));
    const int mine = take_part(number << 16 | static_cast<uint64_t>(members), 0, 0);
    spin_until([&] { return done.load(std::memory_order_acquire) == items - mine; });
  }
  // The first item of a member's part.
  int begin_of(int member, int members) const { return static_cast<int>(static_cast<int64_t>(phase.items()) * member / members); }

  // What member `rank` > 0 does until the run is closed.
  void help(int rank, const std::atomic<bool>& closed) {
    const int ticket = arrived.fetch_add(1);
    for (uint64_t seen = 0;;) {
      spin_until([&] { return closed.load() || call.load() != seen; });
      if (closed.load()) return;
      seen = call.load();
      const int drawn = take_part(seen, rank, ticket);
      if (drawn) done.fetch_add(drawn, std::memory_order_release);
    }
  }

  // Draws items of this member's part, then of the others'; returns how many. The phase is read only by those that have drawn one.
  int take_part(uint64_t opened, int rank, int ticket) {
    const int members = static_cast<int>(opened & 0xffff);
    int drawn = 0;
    for (int i = 0; i < members; ++i) {
      const int owner = (ticket + i) % members;
      while (const int left = parts[static_cast<size_t>(owner)].draw(static_cast<uint32_t>(opened >> 16))) {
        const Item item = phase.item(begin_of(owner + 1, members) - left);
        guard([&] { work_on(item, scratch[static_cast<size_t>(rank)]); });
        ++drawn;
      }
    }
    return drawn;
  }

  void work_on(const Item& item, Scratch& mine) {
    if (phase.records)
      for (Item one = item; one.begin < item.end; ++one.begin) kernel.run_records(net, flight, one);
    else if (flight.dense[static_cast<size_t>(item.node)]) kernel.run_planes(net, ask, flight, mine, item);
    else kernel.run_tile(net, ask, flight, mine, item);
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
