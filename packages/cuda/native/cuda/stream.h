#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "abort-flag.h"
#include "backend.h"
#include "cuda-api.h"
#include "event.h"

namespace ckpt {

class CudaStream : public Stream {
 public:
  explicit CudaStream(uint32_t device);
  ~CudaStream() override;
  void close() override;

  void wait_event(Event& event) override;
  void sync(Signal* signal, uint32_t timeout_ms) override;
  void copy_h2d(std::shared_ptr<Memory> to, uint64_t to_offset, std::shared_ptr<Buffer> from, uint64_t from_offset,
                uint64_t bytes) override;
  void copy_device(std::shared_ptr<Memory> to, std::shared_ptr<Memory> from, std::vector<ckpt_copy_piece> pieces) override;

  // CKPT_ERR_STATE after close(), the error of an aborted broadcast in it; else the CUDA stream, for work to be enqueued.
  cudaStream_t require_usable();
  cudaStream_t require_open();

  // What is recorded from now on fails once this flag is set.
  void follow(std::shared_ptr<AbortFlag> flag);
  std::shared_ptr<AbortFlag> abort_flag();
  bool idle() noexcept;

 private:
  cudaStream_t stream_ = nullptr;
  std::mutex mutex_;
  bool closed_ = false;
  std::shared_ptr<AbortFlag> abort_;
};

}  // namespace ckpt
