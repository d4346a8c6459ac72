#include "event.h"

#include "poller.h"
#include "signals.h"
#include "stream.h"

namespace ckpt {

void CudaEvent::record(Stream& stream) {
  auto mark = std::make_shared<Mark>(device());
  static_cast<CudaStream&>(stream).record(mark);
  std::lock_guard lock(mutex_);
  last_ = std::move(mark);
}

std::shared_ptr<Mark> CudaEvent::last() {
  std::lock_guard lock(mutex_);
  return last_;
}

bool CudaEvent::query() {
  const auto mark = last();
  return mark == nullptr || mark->query();
}

void CudaEvent::notify(std::shared_ptr<Signal> signal) {
  auto mark = last();
  if (mark == nullptr || mark->settled()) return signal->raise(0);
  Poller::notifications().add([mark = std::move(mark), signal = std::move(signal)] {
    if (!mark->settled()) return false;
    signal->raise(0);
    return true;
  });
}

void CudaEvent::wait(Signal* signal, uint32_t timeout_ms) {
  const auto mark = last();
  if (mark == nullptr) return;
  mark->wait(signal, timeout_ms, "the event");
  mark->query();
}

}  // namespace ckpt
