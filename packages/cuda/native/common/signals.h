// A signal: an eventfd that poll() can watch, and sticky bits.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "handle-table.h"
#include "wake.h"

namespace ckpt {

class Signal : public Object {
 public:
  static constexpr Kind kKind = Kind::signal;

  Signal();
  ~Signal() override;

  int fd() const noexcept { return fd_; }
  void raise(uint32_t bits) noexcept;
  uint32_t take() noexcept;
  void reset() noexcept;
  bool aborted() const noexcept {
    return (bits_.load(std::memory_order_acquire) & CKPT_SIGNAL_ABORT) != 0;
  }
  // Throws CKPT_ERR_ABORTED, CKPT_ERR_TIMEOUT, or CKPT_ERR_HANDLE when the signal is destroyed
  // meanwhile.
  uint32_t wait(uint32_t timeout_ms);
  void close() override;

  // Woken by every raise: for waits that an abort must end (see wait_for in completion.h).
  WakeList& wakers() noexcept { return wakers_; }

 private:
  void drain_locked() noexcept;

  int fd_;
  std::atomic<uint32_t> bits_{0};
  std::mutex mutex_;
  bool readable_ = false;  // the state of the fd, which only this class reads and writes
  bool closed_ = false;
  WakeList wakers_;
};

}  // namespace ckpt
