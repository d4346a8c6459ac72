#include "notifier.h"

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <thread>
#include <vector>

#include "threads.h"

namespace ckpt {
namespace {

constexpr auto kPollInterval = std::chrono::microseconds(20);

struct Pending {
  std::shared_ptr<CudaEvent> event;
  std::function<void()> then;
};

class Notifier {
 public:
  static Notifier& instance() {
    static Notifier* notifier = new Notifier;  // never destroyed: its thread ends with the process
    return *notifier;
  }

  void add(Pending pending) {
    {
      std::lock_guard lock(mutex_);
      added_.push_back(std::move(pending));
    }
    condition_.notify_one();
  }

 private:
  Notifier() {
    start_thread("ckpt-notify", [this] { run(); }).detach();
  }

  void run() {
    prctl(PR_SET_TIMERSLACK, 1000UL);  // the default of 50 us would be added to every sleep
    std::vector<Pending> pending;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        if (pending.empty()) condition_.wait(lock, [this] { return !added_.empty(); });
        std::move(added_.begin(), added_.end(), std::back_inserter(pending));
        added_.clear();
      }
      const auto complete = std::stable_partition(pending.begin(), pending.end(), [](const Pending& one) { return !one.event->settled(); });
      for (auto at = complete; at != pending.end(); ++at) at->then();
      pending.erase(complete, pending.end());
      if (!pending.empty()) std::this_thread::sleep_for(kPollInterval);
    }
  }

  std::mutex mutex_;
  std::condition_variable condition_;
  std::vector<Pending> added_;
};

}  // namespace

void when_complete(std::shared_ptr<CudaEvent> event, std::function<void()> then) {
  Notifier::instance().add({std::move(event), std::move(then)});
}

}  // namespace ckpt
