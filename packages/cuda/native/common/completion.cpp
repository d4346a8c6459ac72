#include "completion.h"

#include <algorithm>

namespace ckpt {

void Completion::complete(ckpt_status status, std::string text) {
  std::vector<std::shared_ptr<Signal>> signals;
  {
    std::lock_guard lock(mutex_);
    if (status_ != CKPT_NOT_READY) return;
    status_ = status;
    text_ = std::move(text);
    signals.swap(signals_);
  }
  wakers_.wake_all();
  for (const auto& signal : signals) signal->raise(0);
}

bool Completion::done() const { return status() != CKPT_NOT_READY; }

ckpt_status Completion::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

std::string Completion::text() const {
  std::lock_guard lock(mutex_);
  return text_;
}

void Completion::check() const {
  std::lock_guard lock(mutex_);
  if (status_ != CKPT_OK && status_ != CKPT_NOT_READY) throw Error(status_, text_);
}

void Completion::notify(std::shared_ptr<Signal> signal) {
  {
    std::lock_guard lock(mutex_);
    if (status_ == CKPT_NOT_READY) {
      if (std::find(signals_.begin(), signals_.end(), signal) == signals_.end())
        signals_.push_back(std::move(signal));
      return;
    }
  }
  signal->raise(0);
}

void Completion::wait(Signal* signal, uint32_t timeout_ms, const char* what) {
  wait_for(wakers_, signal, timeout_ms, what, [this] { return done(); });
  check();
}

}  // namespace ckpt
