#pragma once

#include <memory>
#include <mutex>

#include "backend.h"
#include "mark.h"

namespace ckpt {

class CudaEvent : public Event {
 public:
  explicit CudaEvent(uint32_t device) : Event(device) {}

  void record(Stream& stream) override;
  void notify(std::shared_ptr<Signal> signal) override;
  bool query() override;
  void wait(Signal* signal, uint32_t timeout_ms) override;

  // Null when it was never recorded.
  std::shared_ptr<Mark> last();

 private:
  std::mutex mutex_;
  std::shared_ptr<Mark> last_;
};

}  // namespace ckpt
