#include "signals.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

namespace ckpt {

Signal::Signal() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (fd_ < 0) fail_errno(CKPT_ERR_MEMORY, errno, "eventfd");
}

Signal::~Signal() { ::close(fd_); }

void Signal::raise(uint32_t bits) noexcept {
  {
    std::lock_guard lock(mutex_);
    bits_.fetch_or(bits, std::memory_order_acq_rel);
    if (!readable_) {
      readable_ = true;
      const uint64_t one = 1;
      // Cannot fail: the counter is 0 while the fd is not readable.
      (void)!write(fd_, &one, sizeof one);
    }
  }
  wakers_.wake_all();
}

void Signal::drain_locked() noexcept {
  if (!readable_) return;
  readable_ = false;
  uint64_t count;
  (void)!read(fd_, &count, sizeof count);
}

uint32_t Signal::take() noexcept {
  std::lock_guard lock(mutex_);
  drain_locked();
  return bits_.load(std::memory_order_acquire);
}

void Signal::reset() noexcept {
  std::lock_guard lock(mutex_);
  drain_locked();
  bits_.store(0, std::memory_order_release);
}

uint32_t Signal::wait(uint32_t timeout_ms) {
  const auto deadline = deadline_after(timeout_ms);
  Waker waker;
  WakeList::Entry entry(&wakers_, waker);
  for (bool in_time = true;; in_time = waker.wait_until(deadline)) {
    std::lock_guard lock(mutex_);
    if (aborted()) {
      drain_locked();
      fail(CKPT_ERR_ABORTED, "the signal's abort bit is set");
    }
    if (readable_) {
      drain_locked();
      return bits_.load(std::memory_order_acquire);
    }
    if (closed_) fail(CKPT_ERR_HANDLE, "the signal was destroyed during the wait");
    if (!in_time) fail(CKPT_ERR_TIMEOUT, "nothing was signalled within %u ms", timeout_ms);
  }
}

void Signal::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  wakers_.wake_all();
}

}  // namespace ckpt
