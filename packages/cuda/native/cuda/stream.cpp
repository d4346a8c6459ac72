#include "stream.h"

#include <algorithm>

#include "buffer.h"
#include "memory.h"
#include "notifier.h"
#include "signals.h"

namespace ckpt {

CudaStream::CudaStream(uint32_t device) : Stream(device) {
  use_device(device);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr && cudaSetDevice(static_cast<int>(device())) == cudaSuccess) cudaStreamDestroy(stream_);
}

void CudaStream::close() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  use_device(device());
  check_cuda(cudaStreamSynchronize(stream_), "the work in the stream");
}

cudaStream_t CudaStream::require_open() {
  std::lock_guard lock(mutex_);
  if (closed_) fail(CKPT_ERR_STATE, "the stream is being destroyed");
  return stream_;
}

cudaStream_t CudaStream::require_usable() {
  std::lock_guard lock(mutex_);
  if (closed_) fail(CKPT_ERR_STATE, "the stream is being destroyed");
  if (abort_ && abort_->aborted()) fail(CKPT_ERR_ABORTED, "a broadcast in the stream was aborted");
  return stream_;
}

void CudaStream::follow(std::shared_ptr<AbortFlag> flag) {
  std::lock_guard lock(mutex_);
  abort_ = std::move(flag);
}

std::shared_ptr<AbortFlag> CudaStream::abort_flag() {
  std::lock_guard lock(mutex_);
  return abort_;
}

bool CudaStream::idle() noexcept { return cudaStreamQuery(stream_) != cudaErrorNotReady; }

void CudaStream::wait_event(Event& event) {
  use_device(device());
  const auto flag = static_cast<CudaEvent&>(event).make_wait(require_usable());
  if (flag) follow(flag);
}

void CudaStream::sync(Signal* signal, uint32_t timeout_ms) {
  const auto event = std::make_shared<CudaEvent>(device());
  event->record(*this);
  try {
    event->wait(signal, timeout_ms);
  } catch (const Error&) {
    const auto flag = abort_flag();
    if (flag && flag->aborted()) follow(nullptr);  // the error has been told; the stream can be used again
    throw;
  }
}

// Cut where a registration ends: a copy that crosses from one into the next fails (cudaErrorInvalidValue).
void CudaStream::copy_h2d(std::shared_ptr<Memory> to, uint64_t to_offset, std::shared_ptr<Buffer> from, uint64_t from_offset,
                          uint64_t bytes) {
  const cudaStream_t stream = require_usable();
  use_device(device());
  std::shared_ptr<File::Reader> reader;
  if (from->file()) {
    reader = from->file()->enter();
    if (!reader) fail(CKPT_ERR_CHANGED, "%s changed after it was registered in place", from->file()->path().c_str());
  }
  const auto& memory = static_cast<CudaMemory&>(*to);
  const uint64_t piece_bytes = from->pin_piece_bytes();
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t at = from_offset + done;
    const uint64_t count = std::min(bytes - done, piece_bytes - at % piece_bytes);
    check_cuda(cudaMemcpyAsync(memory.at(to_offset + done), from->address() + at, count, cudaMemcpyHostToDevice, stream), "copying to the device");
    done += count;
  }
  if (!reader) return;
  const auto read = std::make_shared<CudaEvent>(device());
  read->record(*this);
  when_complete(read, [reader] {});
}

}  // namespace ckpt
