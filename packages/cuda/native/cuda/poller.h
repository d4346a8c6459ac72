// Threads that look at what the device has done. A host function in the stream would hold the
// stream up for the time of a thread switch, and would not run at all behind an error.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

namespace ckpt {

class Poller {
 public:
  // Raises the signals of events.
  static Poller& notifications();
  // Lets go of what finished work has used. That may take long (pages are unpinned, memory is
  // freed), so no notification waits for it.
  static Poller& releases();

  // Whether this is one of those threads.
  static bool is_current() noexcept;

  // Calls `step` until it returns true. It must not throw.
  void add(std::function<bool()> step);

 private:
  Poller(const char* name, std::chrono::microseconds interval);
  void run(std::chrono::microseconds interval);

  std::mutex mutex_;
  std::condition_variable condition_;
  std::vector<std::function<bool()>> added_;
};

}  // namespace ckpt
