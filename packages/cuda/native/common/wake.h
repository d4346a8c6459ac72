// How a thread blocks in this library: on a Waker that several sources (a completion, a signal) can
// wake.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

namespace ckpt {

using Clock = std::chrono::steady_clock;

inline Clock::time_point deadline_after(uint32_t timeout_ms) {
  return Clock::now() + std::chrono::milliseconds(timeout_ms);
}

// Lives on the stack of the thread that waits.
class Waker {
 public:
  void wake();
  // True when woken since the last call, false at the deadline.
  bool wait_until(Clock::time_point deadline);

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool woken_ = false;
};

// The wakers that wait for one source. wake_all() is called after the source's state has changed.
class WakeList {
 public:
  void wake_all();

  class Entry {
   public:
    Entry(WakeList* list, Waker& waker);  // list may be null
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    WakeList* list_;
    Waker& waker_;
  };

 private:
  std::mutex mutex_;
  std::vector<Waker*> wakers_;
};

}  // namespace ckpt
