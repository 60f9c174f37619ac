// The C interface: build a network from arrays, check it, and run images through it with a given number of threads.
//
// Every function that can fail returns a negative number or null; `nbsnn_error` has the reason. Nothing here keeps a pointer
// that it was given beyond the call.
#include <algorithm>
#include <string>

#include "logits.h"
#include "targets.h"
#include "ways.h"

#define NBSNN_API extern "C" __attribute__((visibility("default")))

namespace nbsnn {
namespace {

thread_local std::string error;

int fail(const std::string& why) {
  error = why;
  return -1;
}

// Whether start [slots + 1] leads through all of `from`, whose entries are among so many positions.
bool is_table(const uint32_t* start, const uint32_t* from, int64_t slots, int64_t from_size, int positions) {
  bool fits = start[0] == 0 && start[slots] == from_size;
  for (int64_t i = 0; i < slots; ++i) fits = fits && start[i] <= start[i + 1];
  for (int64_t i = 0; fits && i < from_size; ++i) fits = from[i] < static_cast<uint32_t>(positions);
  return fits;
}

}  // namespace
}  // namespace nbsnn

using nbsnn::fail;
using nbsnn::is_table;

// Of this interface; native.py asks for it, since a library may be older than the Python beside it.
NBSNN_API int nbsnn_version() { return 9; }

NBSNN_API const char* nbsnn_error() { return nbsnn::error.c_str(); }
NBSNN_API const char* nbsnn_target_name(int target) { return nbsnn::target_name(target); }
NBSNN_API int nbsnn_has_target(int target) { return nbsnn::has_target(target); }
NBSNN_API void nbsnn_free(nbsnn::Net* net) { delete net; }

// Pixels are from `low` to `high`. Images may also be floats, which become integers (net.h), unless `scale` is 0.
NBSNN_API nbsnn::Net* nbsnn_new(int target, int timesteps, int image_channels, int pixels, int low, int high, float scale,
                                float slack) {
  if (!nbsnn::has_target(target)) return fail("this processor lacks the instruction set"), nullptr;
  if (timesteps < 1 || timesteps > 4096 || image_channels < 1 || pixels < 1) return fail("bad size"), nullptr;
  const nbsnn::Grid grid{low, high, scale, slack};
  if (scale > 0 && static_cast<float>(grid.bound()) + slack >= 16777216) return fail("bad grid"), nullptr;  // 2^24
  try {
    auto net = std::make_unique<nbsnn::Net>();
    net->target = target, net->timesteps = timesteps, net->image_channels = image_channels, net->pixels = pixels, net->grid = grid;
    return net.release();
  } catch (const std::bad_alloc&) {
    return fail("out of memory"), nullptr;
  }
}

// `bias` is [channels] or [channels][positions]. Heads come last.
NBSNN_API int nbsnn_add_node(nbsnn::Net* net, int head, int wide, int channels, int positions, int levels, int fraction_bits,
                             int64_t retract, const int64_t* bias, int64_t bias_size) try {
  if (!head && !net->nodes.empty() && net->nodes.back().head) return fail("only heads follow a head");
  if (channels < 1 || positions < 1 || levels < 1 || levels > 4096 || fraction_bits < 1 || fraction_bits > (wide ? 61 : 30))
    return fail("bad node");
  if (bias_size != channels && bias_size != static_cast<int64_t>(channels) * positions) return fail("bad bias size");
  nbsnn::Node node{};
  node.head = head, node.wide = wide || head, node.channels = channels, node.positions = positions, node.levels = levels;
  node.fraction_bits = fraction_bits, node.retract = retract, node.last_use = -1;
  node.bias.assign(bias, bias + bias_size);
  if (head && !net->nodes.empty() && net->nodes.back().head)
    node.first_sum = net->nodes.back().first_sum + net->nodes.back().outputs();
  net->nodes.push_back(std::move(node));
  return static_cast<int>(net->nodes.size()) - 1;
} catch (const std::bad_alloc&) {
  return fail("out of memory");
}

// A synapse of the node added last. `weight` is [taps][inputs][channels / groups]; `start` [taps · positions + 1] and `from` say
// which input positions each tap reads for each output position. With `is_digit` they are those of the branch before, whose
// weights have 16 times these as their further digits.
NBSNN_API int nbsnn_add_branch(nbsnn::Net* net, int source, int inputs, int groups, int taps, int shift, const uint32_t* start,
                               const uint32_t* from, int64_t from_size, const int64_t* multiplier, const int16_t* weight,
                               int64_t weight_size, int is_digit) try {
  if (net->nodes.empty()) return fail("a branch needs a node");
  nbsnn::Node& node = net->nodes.back();
  const int index = static_cast<int>(net->nodes.size()) - 1;
  if (source < -1 || source >= index || (source >= 0 && net->nodes[static_cast<size_t>(source)].head)) return fail("bad source");
  const int positions = source < 0 ? net->pixels : net->nodes[static_cast<size_t>(source)].positions;
  if (inputs != (source < 0 ? net->image_channels : net->nodes[static_cast<size_t>(source)].channels)) return fail("bad inputs");
  if (groups < 1 || inputs % groups || node.channels % groups || taps < 1 || shift < 0 || shift > 62) return fail("bad branch");
  if (weight_size != static_cast<int64_t>(taps) * inputs * (node.channels / groups)) return fail("bad weight size");
  if (is_digit && (node.branches.empty() || node.branches.back().source != source || node.branches.back().taps != taps))
    return fail("bad digit");
  const int64_t slots = static_cast<int64_t>(taps) * node.positions;
  if (!is_table(start, from, slots, from_size, positions)) return fail("bad tap table");
  nbsnn::Branch b{};
  b.source = source, b.inputs = inputs, b.groups = groups, b.taps = taps, b.shift = shift;
  b.is_digit = is_digit;
  b.start.assign(start, start + slots + 1);
  b.from.assign(from, from + from_size);
  b.multiplier.assign(static_cast<size_t>(nbsnn::round_up(node.channels, nbsnn::kGroup) + nbsnn::kMaxRow), 0);
  std::copy(multiplier, multiplier + node.channels, b.multiplier.begin());
  if (!node.wide) b.multiplier32.assign(b.multiplier.begin(), b.multiplier.end());
  b.weight.assign(weight, weight + weight_size);
  if (source >= 0) net->nodes[static_cast<size_t>(source)].last_use = index;
  nbsnn::prepare_branch(nbsnn::kernel_of(net->target), *net, node, b);
  node.branches.push_back(std::move(b));
  return 0;
} catch (const std::bad_alloc&) {
  return fail("out of memory");
}

// A max pool (or a min pool) of the counts of `source`, with as many channels and levels. `start` [positions + 1] and `from` say
// which positions each window compares; the value of one without any is 0.
NBSNN_API int nbsnn_add_pool(nbsnn::Net* net, int source, int lowest, int positions, const uint32_t* start, const uint32_t* from,
                             int64_t from_size) try {
  const int index = static_cast<int>(net->nodes.size());
  if (source < 0 || source >= index || net->nodes.back().head) return fail("bad source");
  nbsnn::Node& read = net->nodes[static_cast<size_t>(source)];
  if (positions < 1) return fail("bad node");
  if (!is_table(start, from, positions, from_size, read.positions)) return fail("bad window table");
  nbsnn::Node node{};
  node.pool = lowest ? -1 : 1, node.channels = read.channels, node.positions = positions, node.levels = read.levels;
  node.fraction_bits = 1, node.last_use = -1;
  nbsnn::Branch b{};
  b.source = source, b.inputs = read.channels, b.groups = b.taps = 1;
  b.start.assign(start, start + positions + 1);
  b.from.assign(from, from + from_size);
  node.branches.push_back(std::move(b));
  read.last_use = index;
  net->nodes.push_back(std::move(node));
  return index;
} catch (const std::bad_alloc&) {
  return fail("out of memory");
}

// The network's result is bias + sum · factor, in float32, of its only head, for each of its `size` outputs.
NBSNN_API int nbsnn_set_result(nbsnn::Net* net, const double* bias, const double* factors, int64_t size) try {
  if (net->nodes.empty() || !net->nodes.back().head || net->nodes.back().outputs() != size) return fail("bad result");
  net->bias.assign(bias, bias + size), net->factors.assign(factors, factors + size);
  return 0;
} catch (const std::bad_alloc&) {
  return fail("out of memory");
}

// To be called once, after the last head's last branch.
NBSNN_API int nbsnn_finish(nbsnn::Net* net) try {
  if (net->nodes.empty() || !net->nodes.back().head) return fail("the network has no head");
  for (const nbsnn::Node& node : net->nodes)
    if (node.branches.empty()) return fail("a node has no branch");
  nbsnn::prepare_network(*net);
  net->finished = true;
  return 0;
} catch (const std::bad_alloc&) {
  return fail("out of memory");
}

// Runs `batch` images [batch, image_channels, pixels] with up to `threads` threads, the caller's included; one that starts late may
// leave this code shortly after the call, so do not unload it right then. Images are int32, or float32 with `floats`; returns 1 if any
// is refused. `counts` holds a pointer per node, [batch, channels, positions] or null. Other outputs: sums of the heads' branches, one
// after the other, [batch, channels, positions]; the result in float32 [batch, outputs], or null; steps [batch]; spikes [nodes][batch];
// nanoseconds [nodes], zero at first, or null: the time of a node is that of its leading thread, from its begin to its end. `pool` is
// the address of GOMP_parallel, whose threads are taken in place of new ones, or null.
NBSNN_API int nbsnn_run(const nbsnn::Net* net, const void* images, int floats, int batch, int mode, int threads, int flight_images,
                        int32_t* const* counts, int64_t* sums, float* result, int64_t* steps, int64_t* spikes, int64_t* nanoseconds,
                        void* pool) {
  if (!net->finished) return fail("the network is not finished");
  if ((floats && !(net->grid.scale > 0)) || (result && net->bias.empty())) return fail("bad request");
  if (batch < 1 || mode < 0 || mode >= nbsnn::kModes || threads < 1 || threads > 1024 || flight_images < 1)
    return fail("bad request");
  for (const nbsnn::Node& node : net->nodes)
    if (static_cast<int64_t>(std::max(flight_images, nbsnn::kernel_of(net->target).vector)) * node.positions > INT32_MAX)
      return fail("too many images in flight");
  std::fill_n(spikes, net->nodes.size() * static_cast<size_t>(batch), 0);
  const nbsnn::Request ask{floats ? nullptr : static_cast<const int32_t*>(images),
                           floats ? static_cast<const float*>(images) : nullptr,
                           batch,
                           mode,
                           threads,
                           counts,
                           sums,
                           steps,
                           spikes,
                           nanoseconds,
                           reinterpret_cast<nbsnn::Parallel>(pool)};
  const nbsnn::End end = nbsnn::run(*net, ask, flight_images);
  if (end == nbsnn::End::failed) return fail("out of memory");
  if (end == nbsnn::End::refused) return 1;
  if (result) nbsnn::write_logits(*net, sums, batch, result);
  return 0;
}
