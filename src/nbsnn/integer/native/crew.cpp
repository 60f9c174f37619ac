// Teams of threads that take images through a network, node by node.
#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "targets.h"
#include "ways.h"

namespace nbsnn {
namespace {

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

void load_pixels(const Net& net, const Request& ask, Flight& flight) {
  const int channels = net.image_channels;
  int32_t* out = reinterpret_cast<int32_t*>(
      flight.pixels.need(static_cast<size_t>(flight.images) * net.pixels * channels * sizeof(int32_t)));
  const int32_t* in = ask.images + static_cast<size_t>(flight.first) * channels * net.pixels;
  for (int i = 0; i < flight.images; ++i)
    for (int c = 0; c < channels; ++c)
      for (int p = 0; p < net.pixels; ++p)
        out[(static_cast<size_t>(i) * net.pixels + p) * channels + c] = in[(static_cast<size_t>(i) * channels + c) * net.pixels + p];
  if (!flight.dense) return;
  const Kernel& kernel = kernel_of(net.target);
  const size_t all = static_cast<size_t>(net.pixels) * channels;
  int32_t* lanes = reinterpret_cast<int32_t*>(flight.lanes.need(all * kernel.vector * sizeof(int32_t)));
  for (int slot = 0; slot < kernel.vector; ++slot) {
    const int image = kernel.image_of(slot);
    for (size_t i = 0; i < all; ++i)  // what belongs to no image is zero
      lanes[i * kernel.vector + slot] = image < flight.images ? out[static_cast<size_t>(image) * all + i] : 0;
  }
}

int chunks_of(const Net& net, const Request& ask, const Flight& flight, const Node& node) {
  int lanes = net.timesteps;
  if (ask.mode == kCounts) lanes = 32 - __builtin_clz(static_cast<unsigned>(node.levels));
  if (ask.mode == kSettle) {
    for (const Branch& b : node.branches)
      if (b.source >= 0)
        for (int last : flight.values[static_cast<size_t>(b.source)].last) lanes = last > lanes ? last : lanes;
    if (!node.pool) lanes += node.levels + 1;  // after its last input a neuron moves to its count by one spike a step
  }
  return (lanes + kLanes - 1) / kLanes;
}

// One team takes its flights through the network; a team of several shares each node's tiles. Its leader does not wait for
// members that have not started: they join at the next node. Starting a thread may take longer than a small network takes.
struct Team {
  const Net& net;
  const Request& ask;
  const Kernel& kernel;
  const int size;
  Flight flight;
  Pool pool;
  Barrier barrier;
  alignas(64) std::atomic<int> next{0}, next_record{0};
  alignas(64) std::atomic<uint64_t> call{0};  // nodes opened so far · 2^16 + members that work on the last one
  std::atomic<int> arrived{1};
  size_t open = 0;                // that node
  std::atomic<bool> failed{false};
  std::vector<Scratch> scratch;

  Team(const Net& n, const Request& a, int s) : net(n), ask(a), kernel(kernel_of(n.target)), size(s), scratch(static_cast<size_t>(s)) {}

  void begin_flight(int first, int images) {
    flight.first = first, flight.images = images;
    flight.dense = are_dense(net, kernel, images);
    flight.values.assign(net.nodes.size(), Value{});
    load_pixels(net, ask, flight);
    for (int i = 0; i < images; ++i) ask.steps[first + i] = net.timesteps;
  }

  void begin_node(size_t index) {
    const Node& node = net.nodes[index];
    Value& value = flight.values[index];
    next.store(0), next_record.store(0);
    for (Scratch& s : scratch) s.last.assign(static_cast<size_t>(flight.images), 0), s.spikes.assign(static_cast<size_t>(flight.images), 0);
    if (node.head) return;
    const bool two = ask.mode == kFixedSigned || ask.mode == kSettle;
    value.chunks = chunks_of(net, ask, flight, node);
    value.last.assign(static_cast<size_t>(flight.images), 0);
    if (!flight.dense || node.records_read) {
      value.record = node.record(two);
      value.records = pool.take(static_cast<size_t>(flight.images) * value.chunks * node.positions * node.groups() * value.record * 2);
    }
    if (flight.dense && (node.planes || node.planes_read)) {
      value.signs = two ? 2 : 1;
      value.used.assign(static_cast<size_t>(value.chunks) * kLanes * value.signs, 0);
      const size_t groups = (static_cast<size_t>(node.channels) + 3) / 4;
      value.planes = pool.take(value.used.size() * node.positions * groups * kernel.vector);
    }
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
    if (flight.dense && node.planes) {
      const int groups = (node.channels + kernel.block - 1) / kernel.block;
      share(next, members, node.positions, groups, kernel.span, number, [&](const Item& item) {
        kernel.run_planes(net, ask, flight, mine, item);
      });
      if (node.records_read) {
        barrier.wait(members);
        share(next_record, members, images * node.positions, 1, 1, number, [&](const Item& item) {
          kernel.run_records(net, flight, item);
        });
      }
    } else {
      share(next, members, images * node.positions, node.groups(), kTile, number, [&](const Item& item) {
        kernel.run_tile(net, ask, flight, mine, item);
      });
    }
    barrier.wait(members);
  }

  // Calls `work` for each item that this member draws: `all` positions in tiles, times `groups`; small tiles if they are few.
  template <class F>
  void share(std::atomic<int>& from, int members, int all, int groups, int tile, int node, F&& work) {
    while (members > 1 && tile > 1 && (all + tile - 1) / tile * groups < 2 * members) tile /= 2;
    const int items = (all + tile - 1) / tile * groups;
    for (int i = from.fetch_add(1); i < items; i = from.fetch_add(1)) {
      const int begin = i / groups * tile, end = begin + tile < all ? begin + tile : all;
      guard([&] { work(Item{node, begin, end, i % groups}); });
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

// State shared by a run and its threads. They are not joined: a thread that starts after the end finds it closed and returns.
// Of `inside` and `closed` each side writes one before it reads the other, in one order for all.
struct Crew {
  std::atomic<int> inside{0};
  std::atomic<bool> closed{false};
  std::function<void(int)> work;  // not called once it is closed

  void enter(int worker) {
    if (closed.load()) return;
    inside.fetch_add(1);
    if (!closed.load()) work(worker);
    inside.fetch_sub(1);
  }
  void close() {
    closed.store(true);
    spin_until([&] { return inside.load() == 0; });
  }
};

constexpr int kMostThreads = 256;  // that may be on their way at a time, of all runs, if none asks for more
std::atomic<int> under_way{0};

// Starts up to n threads; fewer if the system allows no more, or if too many threads of earlier runs have not started yet.
void start(const std::shared_ptr<Crew>& crew, int n) {
  for (int i = 1; i <= n; ++i) {
    if (under_way.fetch_add(1) >= std::max(kMostThreads, n)) return void(under_way.fetch_sub(1));
    try {
      std::thread([crew, i] { crew->enter(i), under_way.fetch_sub(1); }).detach();
    } catch (const std::exception&) {
      return void(under_way.fetch_sub(1));
    }
  }
}

}  // namespace

bool run(const Net& net, const Request& ask, int flight_images) try {
  const Kernel& kernel = kernel_of(net.target);
  const bool dense = are_dense(net, kernel, std::min(ask.batch, kernel.vector));
  const bool apart = !dense && ask.batch >= 2 * ask.threads;  // enough images for each thread to go its own way
  const int full = dense ? kernel.vector : 0;                 // full vectors first, then the rest
  int flights = (ask.batch + flight_images - 1) / flight_images;
  if (apart) flights = static_cast<int>(round_up(flights, ask.threads));
  if (dense) flights = (ask.batch + full - 1) / full;
  std::vector<std::unique_ptr<Team>> teams;
  for (int i = 0; i < (apart ? ask.threads : 1); ++i) teams.push_back(std::make_unique<Team>(net, ask, apart ? 1 : ask.threads));
  std::atomic<int> next{0};
  auto lead = [&](Team& team) {
    for (int f = next.fetch_add(1); f < flights; f = next.fetch_add(1)) {
      const int first = full ? f * full : static_cast<int>(static_cast<int64_t>(ask.batch) * f / flights);
      const int end = full ? std::min(first + full, ask.batch) : static_cast<int>(static_cast<int64_t>(ask.batch) * (f + 1) / flights);
      if (end > first) team.lead(first, end - first);
    }
  };
  const auto crew = std::make_shared<Crew>();
  crew->work = [&](int worker) {
    if (apart) lead(*teams[static_cast<size_t>(worker)]);
    else teams[0]->help(worker, crew->closed);
  };
  start(crew, ask.threads - 1);
  lead(*teams[0]);
  crew->close();
  for (const auto& team : teams)
    if (team->failed.load()) return false;
  return true;
} catch (const std::bad_alloc&) {  // before any thread was started
  return false;
}

}  // namespace nbsnn
