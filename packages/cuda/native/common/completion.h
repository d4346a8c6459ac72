// The end of a piece of asynchronous work: happens once, with a status and a text.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "signals.h"

namespace ckpt {

// Waits until ready() is true: the source changes its state, then calls list.wake_all(). `signal`
// may be null. Throws CKPT_ERR_ABORTED or CKPT_ERR_TIMEOUT; `what` names the wait in their text.
template <class Ready>
void wait_for(WakeList& list, Signal* signal, uint32_t timeout_ms, const char* what,
              Ready&& ready) {
  const auto deadline = deadline_after(timeout_ms);
  Waker waker;
  WakeList::Entry source(&list, waker);
  WakeList::Entry abort(signal != nullptr ? &signal->wakers() : nullptr, waker);
  for (bool in_time = true;; in_time = waker.wait_until(deadline)) {
    if (ready()) return;
    if (signal != nullptr && signal->aborted()) fail(CKPT_ERR_ABORTED, "%s: aborted", what);
    if (!in_time) fail(CKPT_ERR_TIMEOUT, "%s: not done within %u ms", what, timeout_ms);
  }
}

class Completion {
 public:
  // Wakes the waiters and raises the signals of notify(). Later calls do nothing.
  void complete(ckpt_status status, std::string text);
  bool done() const;
  // CKPT_NOT_READY until complete().
  ckpt_status status() const;
  std::string text() const;
  // Throws the error it completed with; nothing when it is OK or still running.
  void check() const;
  // Raises the signal (no bits) at the end, or at once when that has been.
  void notify(std::shared_ptr<Signal> signal);
  // Throws its error, CKPT_ERR_ABORTED or CKPT_ERR_TIMEOUT.
  void wait(Signal* signal, uint32_t timeout_ms, const char* what);

 private:
  mutable std::mutex mutex_;
  ckpt_status status_ = CKPT_NOT_READY;
  std::string text_;
  std::vector<std::shared_ptr<Signal>> signals_;
  WakeList wakers_;
};

}  // namespace ckpt
