#include "event.h"

#include <chrono>
#include <thread>

#include "abort-flag.h"
#include "notifier.h"
#include "signals.h"
#include "stream.h"
#include "wake.h"

namespace ckpt {
namespace {

constexpr auto kPollInterval = std::chrono::microseconds(50);

}  // namespace

CudaEvent::CudaEvent(uint32_t device) : Event(device) {
  use_device(device);
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr && cudaSetDevice(static_cast<int>(device())) == cudaSuccess) cudaEventDestroy(event_);
}

void CudaEvent::record(Stream& stream) {
  auto& cuda = static_cast<CudaStream&>(stream);
  if (cuda.device() != device()) fail(CKPT_ERR_INVALID, "an event of device %u in a stream of device %u", device(), cuda.device());
  use_device(device());
  std::lock_guard lock(mutex_);
  check_cuda(cudaEventRecord(event_, cuda.require_open()), "cudaEventRecord");
  abort_ = cuda.abort_flag();
}

std::shared_ptr<AbortFlag> CudaEvent::make_wait(cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
  return abort_;
}

bool CudaEvent::query() {
  use_device(device());
  std::lock_guard lock(mutex_);
  if (abort_ && abort_->aborted()) fail(CKPT_ERR_ABORTED, "a broadcast before the event was aborted");
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) return false;
  check_cuda(error, "the work before the event");
  return true;
}

void CudaEvent::notify(std::shared_ptr<Signal> signal) {
  if (settled()) return signal->raise(0);
  when_complete(shared_from_this(), [signal = std::move(signal)] { signal->raise(0); });
}

bool CudaEvent::settled() noexcept {
  try {
    return query();
  } catch (...) {
    return true;
  }
}

// CUDA has no wait with a deadline, so it is polled; the data path uses notify() and poll() instead.
void CudaEvent::wait(Signal* signal, uint32_t timeout_ms) {
  const auto deadline = deadline_after(timeout_ms);
  while (!query()) {
    if (signal != nullptr && signal->aborted()) fail(CKPT_ERR_ABORTED, "the event: aborted");
    if (Clock::now() >= deadline) fail(CKPT_ERR_TIMEOUT, "the event: not done within %u ms", timeout_ms);
    std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace ckpt
