#include "threads.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace onp {
namespace {

// A thread that has just worked looks out for more this long before it sleeps: message passing comes in bursts, and
// waking a sleeper takes about as long as a small call.
constexpr auto kPatience = std::chrono::microseconds(30);

class Pool {
 public:
  void run(int64_t count, int helpers, const std::function<void(int64_t)>& work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start(helpers);
      work_ = &work;
      count_ = count;
      helpers_ = helpers;
      next_.store(0, std::memory_order_relaxed);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    share(work, count);
    {
      // Nobody waits for a helper that has not come yet: the core it wants may be taken.
      std::lock_guard<std::mutex> lock(mutex_);
      helpers_ = 0;
    }
    while (active_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }

 private:
  void start(int helpers) {
    try {
      for (; started_ < helpers; ++started_) std::thread([this, id = started_] { serve(id); }).detach();
    } catch (const std::system_error&) {
      // No more threads to be had: those there are do the work.
    }
  }

  void share(const std::function<void(int64_t)>& work, int64_t count) {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
  }

  void serve(int id) {
    uint64_t seen = 0;
    for (;;) {
      const auto patience = std::chrono::steady_clock::now() + kPatience;
      while (round_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < patience) {
      }
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
      seen = round_.load(std::memory_order_relaxed);
      if (id >= helpers_) continue;
      active_.fetch_add(1, std::memory_order_relaxed);
      const std::function<void(int64_t)>& work = *work_;
      const int64_t count = count_;
      lock.unlock();
      share(work, count);
      active_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t count_ = 0;
  int helpers_ = 0;
  int started_ = 0;
  std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> active_{0};
};

}  // namespace

void parallel(int64_t count, int threads, const std::function<void(int64_t)>& work) {
  // Never destroyed: its threads wait in it until the process ends. A forked child has none of them and makes its own.
  static std::mutex one_caller;
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  std::unique_lock<std::mutex> lock(one_caller, std::try_to_lock);
  if (threads < 2 || count < 2 || !lock.owns_lock()) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  if (owner != getpid()) pool = new Pool, owner = getpid();
  pool->run(count, threads - 1, work);
}

}  // namespace onp
