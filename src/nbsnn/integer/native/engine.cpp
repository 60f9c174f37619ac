// The C interface: build a network from arrays, check it, and run images through it with a given number of threads.
//
// Every function that can fail returns a negative number or null; `nbsnn_error` has the reason. Nothing here keeps a pointer
// that it was given beyond the call.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>

#include "targets.h"

#define NBSNN_API extern "C" __attribute__((visibility("default")))

namespace nbsnn {
namespace {

thread_local std::string error;

int fail(const std::string& why) {
  error = why;
  return -1;
}

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

int run(const Net& net, const Request& ask, int flight_images) {
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
  if (failed) return fail("out of memory");
  for (size_t n = 0; n < net.nodes.size(); ++n)
    for (const auto& team : crew)
      for (const Scratch& s : team->scratch) ask.rows[n] += s.rows[n];
  return 0;
}

}  // namespace
}  // namespace nbsnn

using nbsnn::fail;

// Splits a constant branch's taps so that the sums of each part fit int32, if all products stay below 2^61.
static void set_constant(const nbsnn::Net& net, const nbsnn::Node& node, nbsnn::Branch& b) {
  const size_t outputs = static_cast<size_t>(node.channels / b.groups);
  int64_t largest = 1, reads = 1;
  for (int64_t m : b.multiplier) largest = std::max(largest, std::abs(m));
  for (size_t i = 0; i + 1 < b.start.size(); ++i) reads = std::max(reads, static_cast<int64_t>(b.start[i + 1] - b.start[i]));
  const double unit = static_cast<double>(net.pixel_bound) * static_cast<double>(reads);
  std::vector<double> part(static_cast<size_t>(node.channels), 0), whole(part);
  for (int tap = 0; tap < b.taps; ++tap) {
    std::vector<double> more(part.size(), 0);
    for (size_t i = 0; i < static_cast<size_t>(b.inputs); ++i)
      for (size_t o = 0; o < outputs; ++o)
        more[i / (b.inputs / static_cast<size_t>(b.groups)) * outputs + o] +=
            unit * std::abs(b.weight[(static_cast<size_t>(tap) * b.inputs + i) * outputs + o]);
    bool full = false;
    for (size_t o = 0; o < part.size(); ++o) {
      whole[o] += more[o];
      full = full || part[o] + more[o] >= 2147483648.0;
      if (more[o] >= 2147483648.0 || whole[o] * static_cast<double>(largest) >= std::ldexp(1.0, 60)) return b.parts.clear();
    }
    if (full) b.parts.push_back(tap);
    for (size_t o = 0; o < part.size(); ++o) part[o] = full ? more[o] : part[o] + more[o];
  }
  if (largest < 2147483648 && b.shift < 61) b.parts.push_back(b.taps);
  else b.parts.clear();
}

// Which forms of each value are read where planes are in use; known when the head is there.
static void set_readers(nbsnn::Net& net) {
  for (const nbsnn::Node& node : net.nodes)
    for (const nbsnn::Branch& b : node.branches)
      if (b.source >= 0) (node.planes ? net.nodes[static_cast<size_t>(b.source)].planes_read : net.nodes[static_cast<size_t>(b.source)].records_read) = true;
}

NBSNN_API const char* nbsnn_error() { return nbsnn::error.c_str(); }
NBSNN_API const char* nbsnn_target_name(int target) { return nbsnn::name_of(target); }
NBSNN_API int nbsnn_has_target(int target) { return nbsnn::has_target(target); }
NBSNN_API void nbsnn_free(nbsnn::Net* net) { delete net; }

NBSNN_API nbsnn::Net* nbsnn_new(int target, int timesteps, int image_channels, int pixels, int64_t pixel_bound) {
  if (!nbsnn::has_target(target)) return fail("this processor lacks the instruction set"), nullptr;
  if (timesteps < 1 || timesteps > 4096 || image_channels < 1 || pixels < 1) return fail("bad size"), nullptr;
  try {
    auto net = std::make_unique<nbsnn::Net>();
    net->target = target, net->timesteps = timesteps, net->image_channels = image_channels, net->pixels = pixels, net->pixel_bound = pixel_bound;
    return net.release();
  } catch (const std::bad_alloc&) {
    return fail("out of memory"), nullptr;
  }
}

NBSNN_API int nbsnn_add_node(nbsnn::Net* net, int head, int wide, int channels, int positions, int levels, int fraction_bits,
                             int64_t retract, const int64_t* bias) try {
  if (!net->nodes.empty() && net->nodes.back().head) return fail("nothing follows the head");
  if (channels < 1 || positions < 1 || levels < 1 || levels > 4096 || fraction_bits < 1 || fraction_bits > (wide ? 61 : 30))
    return fail("bad node");
  nbsnn::Node node{};
  node.head = head, node.wide = wide || head, node.channels = channels, node.positions = positions, node.levels = levels;
  node.fraction_bits = fraction_bits, node.retract = retract, node.last_use = -1;
  node.bias.assign(bias, bias + channels);
  net->nodes.push_back(std::move(node));
  return static_cast<int>(net->nodes.size()) - 1;
} catch (const std::bad_alloc&) {
  return fail("out of memory");
}

// A synapse of the node added last. `weight` is [taps][inputs][channels / groups]; `start` [taps · positions + 1] and `from` say
// which input positions each tap reads for each output position.
NBSNN_API int nbsnn_add_branch(nbsnn::Net* net, int source, int inputs, int groups, int taps, int shift, const uint32_t* start,
                               const uint32_t* from, int64_t from_size, const int64_t* multiplier, const int16_t* weight,
                               int64_t weight_size) try {
  if (net->nodes.empty()) return fail("a branch needs a node");
  nbsnn::Node& node = net->nodes.back();
  const int index = static_cast<int>(net->nodes.size()) - 1;
  if (source < -1 || source >= index || (source >= 0 && net->nodes[static_cast<size_t>(source)].head)) return fail("bad source");
  const int positions = source < 0 ? net->pixels : net->nodes[static_cast<size_t>(source)].positions;
  if (inputs != (source < 0 ? net->image_channels : net->nodes[static_cast<size_t>(source)].channels)) return fail("bad inputs");
  if (groups < 1 || inputs % groups || node.channels % groups || taps < 1 || shift < 0 || shift > 62) return fail("bad branch");
  if (weight_size != static_cast<int64_t>(taps) * inputs * (node.channels / groups)) return fail("bad weight size");
  const int64_t slots = static_cast<int64_t>(taps) * node.positions;
  if (start[0] != 0 || start[slots] != from_size) return fail("bad tap table");
  for (int64_t i = 0; i < slots; ++i)
    if (start[i] > start[i + 1]) return fail("bad tap table");
  for (int64_t i = 0; i < from_size; ++i)
    if (from[i] >= static_cast<uint32_t>(positions)) return fail("bad input position");
  nbsnn::Branch b{};
  b.source = source, b.inputs = inputs, b.groups = groups, b.taps = taps, b.shift = shift;
  b.start.assign(start, start + slots + 1);
  b.from.assign(from, from + from_size);
  b.multiplier.assign(static_cast<size_t>(nbsnn::round_up(node.channels, nbsnn::kGroup) + nbsnn::kMaxRow), 0);
  std::copy(multiplier, multiplier + node.channels, b.multiplier.begin());
  if (!node.wide) b.multiplier32.assign(b.multiplier.begin(), b.multiplier.end());
  b.weight.assign(weight, weight + weight_size);
  b.wmax = 1;
  for (int16_t w : b.weight) b.wmax = std::max(b.wmax, std::abs(static_cast<int>(w)));
  const nbsnn::Kernel& kernel = nbsnn::kernel_of(net->target);
  bool single = true;  // one input position per tap, as in every convolution
  for (int64_t i = 0; i < slots; ++i) single = single && start[i + 1] - start[i] <= 1;
  b.rows = source >= 0 && groups == 1 && b.wmax <= 31;
  b.identity = groups == inputs && node.channels == inputs && taps == 1 && b.wmax == 1 && *std::min_element(weight, weight + inputs) == 1;
  if (b.rows && single && node.positions > 1 && !node.wide && kernel.make_tables) kernel.make_tables(node, b, b.weight);
  if (b.rows) kernel.pack(node, b);
  if (source >= 0) net->nodes[static_cast<size_t>(source)].last_use = index;
  if (source < 0) set_constant(*net, node, b);
  const bool planes = source < 0 || (single && b.identity) || !b.tables.empty();
  node.planes = planes && (node.branches.empty() || node.planes) && node.positions > 1 && !node.wide && kernel.run_planes;
  node.branches.push_back(std::move(b));
  return 0;
} catch (const std::bad_alloc&) {
  return fail("out of memory");
}

// To be called once, after the head's last branch.
NBSNN_API int nbsnn_finish(nbsnn::Net* net) {
  if (net->nodes.empty() || !net->nodes.back().head) return fail("the network has no head");
  for (const nbsnn::Node& node : net->nodes)
    if (node.branches.empty()) return fail("a node has no branch");
  set_readers(*net);
  net->finished = true;
  return 0;
}

// Runs `batch` images [batch, image_channels, pixels] with `threads` threads, the caller's included. `counts` holds a pointer per
// node, [batch, channels, positions] or null; `sums` one per branch of the head. Other outputs: steps [batch], spikes [nodes][batch]
// and rows [nodes], both zero at first.
NBSNN_API int nbsnn_run(const nbsnn::Net* net, const int32_t* images, int batch, int mode, int threads, int flight_images,
                        int32_t* const* counts, int64_t* const* sums, int32_t* steps, int64_t* spikes, int64_t* rows) {
  if (!net->finished) return fail("the network is not finished");
  if (batch < 1 || mode < 0 || mode >= nbsnn::kModes || threads < 1 || threads > 1024 || flight_images < 1)
    return fail("bad request");
  for (const nbsnn::Node& node : net->nodes)
    if (static_cast<int64_t>(flight_images) * node.positions > INT32_MAX) return fail("too many images in flight");
  return nbsnn::run(*net, nbsnn::Request{images, batch, mode, threads, counts, sums, steps, spikes, rows}, flight_images);
}
