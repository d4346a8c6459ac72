#include "outstanding.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "poller.h"

namespace ckpt {
namespace {

constexpr std::chrono::seconds kLimit{30};

struct State {
  std::mutex mutex;
  std::condition_variable none;
  uint64_t count = 0;
};

// Never destroyed: objects of the library may outlive statics.
State& state() {
  static State* all = new State();
  return *all;
}

}  // namespace

Outstanding::Outstanding() {
  std::lock_guard lock(state().mutex);
  state().count++;
}

Outstanding::~Outstanding() {
  std::lock_guard lock(state().mutex);
  if (--state().count == 0) state().none.notify_all();
}

void wait_for_outstanding() noexcept {
  if (Poller::is_current()) return;
  std::unique_lock lock(state().mutex);
  state().none.wait_for(lock, kLimit, [] { return state().count == 0; });
}

}  // namespace ckpt
