// Runs: how images are divided into flights, and where the threads of teams come from.
#include <functional>

#include "team.h"

namespace nbsnn {
namespace {

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

End run(const Net& net, const Request& ask, int flight_images) try {
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
  End end = End::done;
  for (const auto& team : teams)
    if (team->refused.load()) return End::refused;
    else if (team->failed.load()) end = End::failed;
  return end;
} catch (const std::bad_alloc&) {  // before any thread was started
  return End::failed;
}

}  // namespace nbsnn
