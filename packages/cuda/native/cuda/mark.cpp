#include "mark.h"

#include <chrono>
#include <thread>

#include "signals.h"
#include "wake.h"

namespace ckpt {
namespace {

constexpr auto kPollInterval = std::chrono::microseconds(50);

}  // namespace

Mark::Mark(uint32_t device) : device_(device) {
  use_device(device);
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}

Mark::~Mark() {
  if (cudaSetDevice(static_cast<int>(device_)) == cudaSuccess) cudaEventDestroy(event_);
}

void Mark::record(cudaStream_t stream, std::shared_ptr<const Error> error, Wakes& wakes) {
  error_ = std::move(error);
  try {
    check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
  } catch (const Error& refusal) {
    refused_ = true;
    if (!error_) error_ = std::make_shared<const Error>(refusal);
  }
  recorded_.open(wakes);
}

void Mark::make_wait(cudaStream_t stream) {
  if (!refused_) check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
  if (error_) throw Error(*error_);
}

bool Mark::complete() {
  if (!recorded_.passes(nullptr)) return false;
  if (refused_) return true;
  use_device(device_);
  const cudaError_t result = cudaEventQuery(event_);
  if (result == cudaErrorNotReady) return false;
  check_cuda(result, "the work before the event");
  return true;
}

bool Mark::query() {
  if (!complete()) return false;
  if (error_) throw Error(*error_);
  return true;
}

bool Mark::settled() noexcept {
  try {
    return complete();
  } catch (...) {
    return true;
  }
}

// CUDA has no wait with a deadline, so it is polled; the data path uses notify() and poll().
void Mark::wait(Signal* signal, uint32_t timeout_ms, const char* what) {
  const auto deadline = deadline_after(timeout_ms);
  while (!complete()) {
    if (signal != nullptr && signal->aborted()) fail(CKPT_ERR_ABORTED, "%s: aborted", what);
    if (Clock::now() >= deadline) {
      fail(CKPT_ERR_TIMEOUT, "%s: not done within %u ms", what, timeout_ms);
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

}  // namespace ckpt
