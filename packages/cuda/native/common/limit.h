// For how long a call that looks again and again goes on.
#pragma once

#include <cstdint>

#include "error.h"
#include "signals.h"

namespace ckpt {

class Limit {
 public:
  // `signal` may be null.
  Limit(Signal* signal, uint32_t timeout_ms)
      : signal_(signal), timeout_ms_(timeout_ms), deadline_(deadline_after(timeout_ms)) {}
  // CKPT_ERR_ABORTED, also when the caller says so; CKPT_ERR_TIMEOUT. `what` names the call.
  void check(const char* what, bool aborted = false) const {
    if (aborted || (signal_ != nullptr && signal_->aborted()))
      fail(CKPT_ERR_ABORTED, "%s: aborted", what);
    if (Clock::now() >= deadline_)
      fail(CKPT_ERR_TIMEOUT, "%s: not done within %u ms", what, timeout_ms_);
  }

 private:
  Signal* signal_;
  uint32_t timeout_ms_;
  Clock::time_point deadline_;
};

}  // namespace ckpt
