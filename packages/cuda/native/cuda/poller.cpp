#include "poller.h"

#include <sys/prctl.h>

#include <algorithm>
#include <iterator>
#include <thread>

#include "threads.h"

namespace ckpt {
namespace {

thread_local bool is_poller = false;

}  // namespace

bool Poller::is_current() noexcept { return is_poller; }

// Never destroyed: the threads end with the process.
Poller& Poller::notifications() {
  static Poller* poller = new Poller("ckpt-notify", std::chrono::microseconds(20));
  return *poller;
}

Poller& Poller::releases() {
  static Poller* poller = new Poller("ckpt-release", std::chrono::microseconds(500));
  return *poller;
}

Poller::Poller(const char* name, std::chrono::microseconds interval) {
  start_thread(name, [this, interval] { run(interval); }).detach();
}

void Poller::add(std::function<bool()> step) {
  {
    std::lock_guard lock(mutex_);
    added_.push_back(std::move(step));
  }
  condition_.notify_one();
}

void Poller::run(std::chrono::microseconds interval) {
  is_poller = true;
  prctl(PR_SET_TIMERSLACK, 1000UL);  // the default of 50 us would be added to every sleep
  std::vector<std::function<bool()>> steps;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (steps.empty()) condition_.wait(lock, [this] { return !added_.empty(); });
      std::move(added_.begin(), added_.end(), std::back_inserter(steps));
      added_.clear();
    }
    const auto done = [](const std::function<bool()>& step) { return step(); };
    steps.erase(std::remove_if(steps.begin(), steps.end(), done), steps.end());
    if (!steps.empty()) std::this_thread::sleep_for(interval);
  }
}

}  // namespace ckpt
