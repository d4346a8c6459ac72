// Set when a group is aborted: its broadcasts then end with bytes that must not be used, so what is recorded behind one
// fails. Streams and events keep the flag, not the group.
#pragma once

#include <atomic>

namespace ckpt {

class AbortFlag {
 public:
  void set() noexcept { aborted_.store(true, std::memory_order_release); }
  bool aborted() const noexcept { return aborted_.load(std::memory_order_acquire); }

 private:
  std::atomic<bool> aborted_{false};
};

}  // namespace ckpt
