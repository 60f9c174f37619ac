// Teams of threads that take images through a network, node by node.
#include <algorithm>
#include <chrono>
#include <cstring>
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

// Copies the images to where nodes that are computed from planes read them.
void load_pixels(const Net& net, const Request& ask, Flight& flight) {
  bool read = false;
  for (size_t i = 0; i < net.nodes.size(); ++i)
    for (const Branch& b : net.nodes[i].branches) read = read || (flight.dense[i] && b.source < 0);
  if (!read) return;
  const size_t channels = static_cast<size_t>(net.image_channels), pixels = static_cast<size_t>(net.pixels);
  flight.margin = pixels + kMaxVector;
  const size_t row = static_cast<size_t>(flight.images) * pixels + 2 * flight.margin;
  int32_t* out = reinterpret_cast<int32_t*>(flight.pixels.need(row * channels * sizeof(int32_t)));
  const int32_t* in = ask.images + static_cast<size_t>(flight.first) * channels * pixels;
  for (size_t i = 0; i < static_cast<size_t>(flight.images); ++i)
    for (size_t c = 0; c < channels; ++c, in += pixels)
      std::memcpy(out + c * row + flight.margin + i * pixels, in, pixels * sizeof(int32_t));
}

// Steps in which a node may receive something, its bias in the first T ones.
int inputs_of(const Net& net, const Request& ask, const Flight& flight, const Node& node) {
  int steps = net.timesteps;
  for (const Branch& b : node.branches)
    if (ask.mode == kSettle && b.source >= 0)
      for (int last : flight.values[static_cast<size_t>(b.source)].last) steps = std::max(steps, last);
  return steps;
}

// Steps, or bits of a count, in which a node may send spikes; in settle in multiples of a chunk.
int lanes_of(const Request& ask, const Node& node, int inputs) {
  if (ask.mode == kCounts) return bits_in(node.levels);
  if (ask.mode != kSettle) return inputs;
  // After its last input a neuron moves to its count by one spike a step.
  return static_cast<int>(round_up(node.pool ? inputs : inputs + node.levels + 1, kLanes));
}

// A value's planes, with room before and behind each row for what shifted vectors touch of its neighbors.
void take_planes(const Node& node, const Flight& flight, Value& value, Pool& pool) {
  const size_t places = static_cast<size_t>(flight.images) * static_cast<size_t>(node.positions);
  const size_t margin = static_cast<size_t>(round_up(node.positions + kMaxVector, kMaxVector));
  value.quads = (node.channels + 3) / 4;
  value.used.assign(static_cast<size_t>(value.lanes * value.signs), 0);
  value.fired.assign(value.used.size(), 0);
  value.front = margin;
  // An odd number of cache lines, so that rows do not fall on the same sets.
  value.stride = static_cast<size_t>(round_up(static_cast<int64_t>(places), kMaxVector)) | kMaxVector;
  value.planes = pool.take(value.used.size() * static_cast<size_t>(value.quads) * value.stride + 2 * margin + kBlockLanes);
}

// How many places and channels a block of a node has: sums that fit the second cache, and enough blocks for all members.
struct Shape {
  int places, channels;
};

Shape block_of(const Net& net, const Request& ask, const Flight& flight, int index, int vector, int members) {
  const Node& node = net.nodes[static_cast<size_t>(index)];
  constexpr int64_t kRowsAtATime = 12, kSums = 384 << 10, kNear = 128 << 10;
  const int64_t steps = std::min({inputs_of(net, ask, flight, node), flight.values[static_cast<size_t>(index)].lanes, 8});
  const int64_t all = round_up(static_cast<int64_t>(flight.images) * node.positions, vector);
  int64_t branches = 0;
  for (const Branch& b : node.branches) branches += b.source >= 0;
  int64_t places = std::min<int64_t>(
      {round_up(std::max<int64_t>(1, kRowsAtATime * kMaxVector / (steps * vector)) * vector, vector), kBlockLanes, all});
  int64_t channels = std::min<int64_t>(round_up(node.channels, 4), kGroup);
  const auto bytes = [&] { return branches * channels * places * steps * 2; };
  while (bytes() * (places + vector) <= kNear * places && places + vector <= std::min<int64_t>(kBlockLanes, all)) places += vector;
  while (bytes() > kSums && places > vector) places -= vector;
  while (bytes() > kSums && channels > 32) channels = round_up(channels / 2, 16);
  const auto blocks = [&] { return (all + places - 1) / places * ((node.channels + channels - 1) / channels); };
  while (members > 1 && blocks() < 3 * members && places > vector) places = round_up(places / 2, vector);
  while (members > 1 && blocks() < 2 * members && channels > 16) channels = round_up(channels / 2, 16);
  return Shape{static_cast<int>(places), static_cast<int>(channels)};
}

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

Workspaces::Workspaces() = default;
Workspaces::~Workspaces() = default;

std::unique_ptr<Workspace> Workspaces::take() {
  const std::lock_guard<std::mutex> guard(lock_);
  if (idle_.empty()) return std::make_unique<Workspace>();
  std::unique_ptr<Workspace> space = std::move(idle_.back());
  idle_.pop_back();
  return space;
}

void Workspaces::give(std::unique_ptr<Workspace> space) {
  const std::lock_guard<std::mutex> guard(lock_);
  idle_.push_back(std::move(space));
}

bool run(const Net& net, const Request& ask, int flight_images) try {
  prepare_mode(net, kernel_of(net.target), ask.mode);
  const bool apart = ask.batch >= 2 * ask.threads;  // enough images for each thread to go its own way
  int flights = (ask.batch + flight_images - 1) / flight_images;
  if (apart) flights = static_cast<int>(round_up(flights, ask.threads));
  std::vector<std::unique_ptr<Team>> teams;
  for (int i = 0; i < (apart ? ask.threads : 1); ++i) teams.push_back(std::make_unique<Team>(net, ask, apart ? 1 : ask.threads));
  std::atomic<int> next{0};
  auto lead = [&](Team& team) {
    for (int f = next.fetch_add(1); f < flights; f = next.fetch_add(1)) {
      const int first = static_cast<int>(static_cast<int64_t>(ask.batch) * f / flights);
      const int end = static_cast<int>(static_cast<int64_t>(ask.batch) * (f + 1) / flights);
      if (end > first) team.lead(first, end - first);
    }
  };
  const auto crew = std::make_shared<Crew>();
  crew->work = [&](int worker) {
    if (apart) lead(*teams[static_cast<size_t>(worker)]);
    else teams[0]->help(worker, crew->closed);
  };
  if (ask.pool && ask.threads > 1) {
    // Whoever comes first leads. All have returned when the pool returns.
    std::atomic<int> arrived{0};
    const std::function<void()> enter = [&] {
      const int worker = arrived.fetch_add(1);
      if (worker) return crew->work(worker);
      lead(*teams[0]);
      crew->closed.store(true);
    };
    ask.pool([](void* work) { (*static_cast<const std::function<void()>*>(work))(); }, const_cast<std::function<void()>*>(&enter),
             static_cast<unsigned>(ask.threads), 0);
  } else {
    start(crew, ask.threads - 1);
    lead(*teams[0]);
    crew->close();
  }
  for (const auto& team : teams)
    if (team->failed.load()) return false;
  return true;
} catch (const std::bad_alloc&) {  // before any thread was started
  return false;
}

}  // namespace nbsnn
