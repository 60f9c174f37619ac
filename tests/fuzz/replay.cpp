// Replays calls of the kernel that tests/fuzz/foreign.py recorded, on another processor, and compares every bit of the results.
//
// The file is int64 numbers: for each call its kind, its arguments, and its arrays in place of their addresses.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <vector>

struct Net;
extern "C" {
const char* nbsnn_error();
const char* nbsnn_target_name(int);
int nbsnn_has_target(int);
Net* nbsnn_new(int, int, int, int, int, int, float, float);
int nbsnn_add_node(Net*, int, int, int, int, int, int, int64_t, const int64_t*, int64_t);
int nbsnn_add_branch(Net*, int, int, int, int, int, const uint32_t*, const uint32_t*, int64_t, const int64_t*, const int16_t*,
                     int64_t, int);
int nbsnn_add_pool(Net*, int, int, int, const uint32_t*, const uint32_t*, int64_t);
int nbsnn_finish(Net*);
int nbsnn_run(const Net*, const void*, int, int, int, int, int, int32_t* const*, int64_t*, float*, int64_t*, int64_t*, int64_t*,
              void*);
void nbsnn_free(Net*);
const char* nbsnn_rate_name(int);
double nbsnn_rate(int);
}

namespace {

std::ifstream file;

int64_t number() {
  int64_t value = 0;
  file.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}
int small() { return static_cast<int>(number()); }

template <class T>
std::vector<T> array() {  // its length, then its numbers
  std::vector<T> values(static_cast<size_t>(number()));
  for (T& value : values) value = static_cast<T>(number());
  return values;
}

enum Kind { kEnd, kNew, kNode, kBranch, kPool, kFinish, kRun };

// Runs all networks of the file with one instruction set; returns whether all went well.
bool replay(int target) {
  Net* net = nullptr;
  int runs = 0, wrong = 0, failed = 0;
  for (int64_t kind = number(); kind != kEnd; kind = number()) {
    int done = 0;
    if (kind == kNew) {
      if (net) nbsnn_free(net);
      const int timesteps = small(), channels = small(), pixels = small(), low = small(), high = small();
      const float scale = static_cast<float>(number()), slack = static_cast<float>(number());
      net = nbsnn_new(target, timesteps, channels, pixels, low, high, scale, slack);
      done = net ? 0 : -1;
    } else if (kind == kNode) {
      int n[6];
      for (int& value : n) value = small();
      const int64_t retract = number();
      const auto bias = array<int64_t>();
      done = nbsnn_add_node(net, n[0], n[1], n[2], n[3], n[4], n[5], retract, bias.data(), static_cast<int64_t>(bias.size()));
    } else if (kind == kBranch) {
      int n[6];
      for (int& value : n) value = small();
      const auto start = array<uint32_t>(), from = array<uint32_t>();
      const auto multiplier = array<int64_t>();
      const auto weight = array<int16_t>();
      done = nbsnn_add_branch(net, n[0], n[1], n[2], n[3], n[4], start.data(), from.data(), static_cast<int64_t>(from.size()),
                              multiplier.data(), weight.data(), static_cast<int64_t>(weight.size()), n[5]);
    } else if (kind == kPool) {
      const int source = small(), lowest = small(), positions = small();
      const auto start = array<uint32_t>(), from = array<uint32_t>();
      done = nbsnn_add_pool(net, source, lowest, positions, start.data(), from.data(), static_cast<int64_t>(from.size()));
    } else if (kind == kFinish) {
      done = nbsnn_finish(net);
    } else if (kind == kRun) {
      const int batch = small(), mode = small(), threads = small(), flight = small();
      const auto images = array<int32_t>();
      const auto expected = array<int64_t>();  // sums of the heads
      const auto steps = array<int64_t>();
      const auto spikes = array<int64_t>();
      std::vector<int64_t> sums(expected.size());
      std::vector<int32_t*> counts(spikes.size() / static_cast<size_t>(batch), nullptr);
      std::vector<int64_t> taken(steps.size());
      std::vector<int64_t> fired(spikes.size());
      done = nbsnn_run(net, images.data(), 0, batch, mode, threads, flight, counts.data(), sums.data(), nullptr, taken.data(),
                       fired.data(), nullptr, nullptr);
      ++runs;
      wrong += done == 0 && (sums != expected || taken != steps || fired != spikes);
    }
    if (done < 0) std::printf("call of kind %d failed: %s\n", static_cast<int>(kind), nbsnn_error()), ++failed;
  }
  if (net) nbsnn_free(net);
  std::printf("%s: %d runs, %d with other bits, %d failed calls\n", nbsnn_target_name(target), runs, wrong, failed);
  return !wrong && !failed && runs;
}

}  // namespace

int main(int, char** arguments) {
  bool fine = true;
  for (int target = 0; nbsnn_target_name(target); ++target) {
    if (!nbsnn_has_target(target)) continue;
    file.open(arguments[1], std::ios::binary);
    fine = replay(target) && fine;
    file.close();
  }
  for (int kind = 0; nbsnn_rate_name(kind); ++kind) std::printf("%s: %.1f G/s\n", nbsnn_rate_name(kind), nbsnn_rate(kind) / 1e9);
  return !fine;
}
