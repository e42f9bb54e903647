#include "threads.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

namespace onp {
namespace {

// The entry to a parallel region of GNU's OpenMP, which LLVM's and Intel's have too (libgomp's manual, "Implementing
// PARALLEL construct"). Looked up rather than linked to: there may be several OpenMP libraries about, and the threads
// wanted are those of the one that torch has loaded. They spin for milliseconds after their last work, so that threads
// of our own would fight with them for the cores.
using Region = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

const pid_t owner = getpid();

Region region() {
  static const auto found = reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return owner == getpid() ? found : nullptr;  // OpenMP's threads do not survive a fork
}

struct Shared {
  const std::function<void(int64_t)>& work;
  int64_t count;
  std::atomic<int64_t> next{0};

  void run() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
  }
};

}  // namespace

void parallel(int64_t count, int threads, const std::function<void(int64_t)>& work) {
  static std::mutex one_caller;
  Shared shared = {work, count};
  std::unique_lock<std::mutex> lock(one_caller, std::try_to_lock);
  const Region entry = threads > 1 && count > 1 && lock.owns_lock() ? region() : nullptr;
  if (!entry) return shared.run();
  entry([](void* data) { static_cast<Shared*>(data)->run(); }, &shared, static_cast<unsigned>(threads), 0);
}

}  // namespace onp
