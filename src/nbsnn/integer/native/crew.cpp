// Teams of threads that take images through a network, node by node.
#include <algorithm>
#include <string>
#include <thread>

#include "targets.h"

namespace nbsnn {
namespace {

// A barrier for a few threads that are seldom far apart.
class Barrier {
 public:
  explicit Barrier(int n) : size_(n) {}
  void wait() {
    const int turn = turn_.load();
    if (waiting_.fetch_add(1) + 1 == size_) {
      waiting_.store(0);
      turn_.fetch_add(1);
    } else {
      for (int spins = 0; turn_.load() == turn; ++spins)
        if (spins > 1000) std::this_thread::yield();
    }
  }

 private:
  const int size_;
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
    lanes += node.levels + 1;  // after its last input a neuron moves to its count by one spike a step
  }
  return (lanes + kLanes - 1) / kLanes;
}

// Bit planes pay if enough of a vector's images are there.
bool is_dense(const Kernel& kernel, int images) { return kernel.run_planes && images <= kernel.vector && images * 8 >= kernel.vector * 3; }

// One team takes its flights through the network; a team of several shares each node's tiles.
struct Team {
  const Net& net;
  const Request& ask;
  const Kernel& kernel;
  const int size;
  Flight flight;
  Pool pool;
  Barrier barrier;
  std::atomic<int> next{0}, next_record{0};
  std::atomic<bool> failed{false};
  std::vector<Scratch> scratch;

  Team(const Net& n, const Request& a, int s) : net(n), ask(a), kernel(kernel_of(n.target)), size(s), barrier(s), scratch(static_cast<size_t>(s)) {
    for (Scratch& x : scratch) x.rows.assign(n.nodes.size(), 0);
  }

  void begin_flight(int first, int images) {
    flight.first = first, flight.images = images;
    flight.dense = is_dense(kernel, images);
    flight.values.assign(net.nodes.size(), Value{});
    load_pixels(net, ask, flight);
    for (int i = 0; i < images; ++i) ask.steps[first + i] = net.timesteps;
  }

  void begin_node(size_t index) {
    const Node& node = net.nodes[index];
    Value& value = flight.values[index];
    next.store(0), next_record.store(0);
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

  // What member `rank` of the team does for one flight. After a failure (no memory) all members go on to the end, idle.
  void fly(int rank, int first, int images) {
    if (rank == 0) guard([&] { begin_flight(first, images); });
    for (size_t index = 0; index < net.nodes.size(); ++index) {
      const Node& node = net.nodes[index];
      const int number = static_cast<int>(index);
      Scratch& mine = scratch[static_cast<size_t>(rank)];
      if (rank == 0) guard([&] { begin_node(index); });
      if (size > 1) barrier.wait();
      guard([&] { mine.last.assign(static_cast<size_t>(images), 0), mine.spikes.assign(static_cast<size_t>(images), 0); });
      if (is_dense(kernel, images) && node.planes) {
        const int groups = (node.channels + kernel.block - 1) / kernel.block;
        share(next, node.positions, groups, kernel.span, number, [&](const Item& item) {
          kernel.run_planes(net, ask, flight, mine, item);
        });
        if (node.records_read) {
          if (size > 1) barrier.wait();
          share(next_record, images * node.positions, 1, 1, number, [&](const Item& item) {
            kernel.run_records(net, flight, item);
          });
        }
      } else {
        share(next, images * node.positions, node.groups(), kTile, number, [&](const Item& item) {
          kernel.run_tile(net, ask, flight, mine, item);
        });
      }
      if (size > 1) barrier.wait();
      if (rank == 0) guard([&] { end_node(index); });
    }
  }

  // Calls `work` for each item that this member draws: `all` positions in tiles, times `groups`; small tiles if they are few.
  template <class F>
  void share(std::atomic<int>& from, int all, int groups, int tile, int node, F&& work) {
    while (size > 1 && tile > 1 && (all + tile - 1) / tile * groups < 2 * size) tile /= 2;
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

}  // namespace

bool run(const Net& net, const Request& ask, int flight_images) {
  std::vector<std::unique_ptr<Team>> crew;
  std::atomic<int> next{0}, go{0};
  bool apart = false;
  int flights = 0, full = 0;
  auto work = [&](int worker) {
    while (!go.load()) std::this_thread::yield();
    if (go.load() < 0) return;
    Team& team = *crew[static_cast<size_t>(apart ? worker : 0)];
    for (int f = apart ? next.fetch_add(1) : 0; f < flights; f = apart ? next.fetch_add(1) : f + 1) {
      const int first = full ? f * full : static_cast<int>(static_cast<int64_t>(ask.batch) * f / flights);
      const int end = full ? std::min(first + full, ask.batch) : static_cast<int>(static_cast<int64_t>(ask.batch) * (f + 1) / flights);
      if (end > first) team.fly(apart ? 0 : worker, first, end - first);
    }
  };
  std::vector<std::thread> threads;
  try {
    for (int i = 1; i < ask.threads; ++i) threads.emplace_back(work, i);
  } catch (const std::exception&) {  // the system gives no more threads: go on with those there are
  }
  bool failed = false;
  try {
    const int workers = static_cast<int>(threads.size()) + 1;
    const Kernel& kernel = kernel_of(net.target);
    const bool dense = is_dense(kernel, std::min(ask.batch, kernel.vector));
    apart = !dense && ask.batch >= 2 * workers;  // enough images for each thread to go its own way
    flights = (ask.batch + flight_images - 1) / flight_images;
    if (apart) flights = static_cast<int>(round_up(flights, workers));
    if (dense) full = kernel.vector, flights = (ask.batch + full - 1) / full;  // full vectors first, then the rest
    for (int i = 0; i < (apart ? workers : 1); ++i) crew.push_back(std::make_unique<Team>(net, ask, apart ? 1 : workers));
    go.store(1);
    work(0);
  } catch (const std::bad_alloc&) {
    go.store(-1);
    failed = true;
  }
  for (std::thread& t : threads) t.join();
  for (const auto& team : crew) failed = failed || team->failed.load();
  if (failed) return false;
  for (size_t n = 0; n < net.nodes.size(); ++n)
    for (const auto& team : crew)
      for (const Scratch& s : team->scratch) ask.rows[n] += s.rows[n];
  return true;
}

}  // namespace nbsnn
