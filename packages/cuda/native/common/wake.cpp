#include "wake.h"

#include <algorithm>

namespace ckpt {

// Notified under the lock: the waiter may leave, and its Waker with it, as soon as it holds the
// mutex again.
void Waker::wake() {
  std::lock_guard lock(mutex_);
  woken_ = true;
  condition_.notify_one();
}

bool Waker::wait_until(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  const bool woken = condition_.wait_until(lock, deadline, [this] { return woken_; });
  woken_ = false;
  return woken;
}

void WakeList::wake_all() {
  std::lock_guard lock(mutex_);
  for (Waker* waker : wakers_) waker->wake();
}

WakeList::Entry::Entry(WakeList* list, Waker& waker) : list_(list), waker_(waker) {
  if (list_ == nullptr) return;
  std::lock_guard lock(list_->mutex_);
  list_->wakers_.push_back(&waker_);
}

WakeList::Entry::~Entry() {
  if (list_ == nullptr) return;
  std::lock_guard lock(list_->mutex_);
  auto& wakers = list_->wakers_;
  wakers.erase(std::find(wakers.begin(), wakers.end(), &waker_));
}

}  // namespace ckpt
