// A point in a stream: an event of CUDA that is recorded once, and the error that the stream has
// there.
#pragma once

#include <memory>

#include "cuda-api.h"
#include "gate.h"

namespace ckpt {

class Signal;

class Mark {
 public:
  explicit Mark(uint32_t device);
  ~Mark();
  Mark(const Mark&) = delete;
  Mark& operator=(const Mark&) = delete;

  // By the stream, when its turn has come. A record that CUDA refuses is the mark's error.
  void record(cudaStream_t stream, std::shared_ptr<const Error> error, Wakes& wakes);
  // Open once it is recorded.
  Gate& recorded() noexcept { return recorded_; }
  // Of a recorded mark; null: none.
  const std::shared_ptr<const Error>& error() const noexcept { return error_; }
  // Of a recorded mark: work that `stream` gets from now on comes behind it. Throws its error.
  void make_wait(cudaStream_t stream);

  // True when the work before it has ended, with error() or without. Throws the device's errors.
  bool complete();
  // As complete(), but throws the error as well.
  bool query();
  // As complete(); an error of the device is an end too.
  bool settled() noexcept;
  // Until complete(). Throws CKPT_ERR_ABORTED, CKPT_ERR_TIMEOUT or the device's errors.
  void wait(Signal* signal, uint32_t timeout_ms, const char* what);

 private:
  const uint32_t device_;
  cudaEvent_t event_ = nullptr;
  bool refused_ = false;
  std::shared_ptr<const Error> error_;
  Gate recorded_;
};

}  // namespace ckpt
