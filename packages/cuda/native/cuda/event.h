#pragma once

#include <memory>
#include <mutex>

#include "backend.h"
#include "cuda-api.h"

namespace ckpt {

class AbortFlag;

class CudaEvent : public Event, public std::enable_shared_from_this<CudaEvent> {
 public:
  explicit CudaEvent(uint32_t device);
  ~CudaEvent() override;

  void record(Stream& stream) override;
  void notify(std::shared_ptr<Signal> signal) override;
  bool query() override;
  void wait(Signal* signal, uint32_t timeout_ms) override;

  // True when query() would not say false: complete, or failed.
  bool settled() noexcept;
  // Makes the CUDA stream wait for the last record, and returns the flag that ends what is behind it (null: none).
  std::shared_ptr<AbortFlag> make_wait(cudaStream_t stream);

 private:
  cudaEvent_t event_ = nullptr;
  std::mutex mutex_;
  std::shared_ptr<AbortFlag> abort_;
};

}  // namespace ckpt
