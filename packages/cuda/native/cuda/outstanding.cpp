#include "outstanding.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "poller.h"

namespace ckpt {
namespace {

constexpr std::chrono::seconds kLimit{30};

struct State {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t outstanding = 0;
  uint64_t quiet = 0;  // several may be made at once
};

// Never destroyed: objects of the library may outlive statics.
State& state() {
  static State* all = new State();
  return *all;
}

}  // namespace

Outstanding::Outstanding() {
  std::unique_lock lock(state().mutex);
  state().changed.wait(lock, [] { return state().quiet == 0; });
  state().outstanding++;
}

Outstanding::~Outstanding() {
  std::lock_guard lock(state().mutex);
  if (--state().outstanding == 0) state().changed.notify_all();
}

QuietDevice::QuietDevice() noexcept {
  std::unique_lock lock(state().mutex);
  const auto none = [] { return state().outstanding == 0; };
  quiet_ = Poller::is_current() ? none() : state().changed.wait_for(lock, kLimit, none);
  if (quiet_) state().quiet++;
}

QuietDevice::~QuietDevice() {
  if (!quiet_) return;
  std::lock_guard lock(state().mutex);
  if (--state().quiet == 0) state().changed.notify_all();
}

}  // namespace ckpt
