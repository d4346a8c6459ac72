// One cudaMalloc allocation, or one of another process that was opened by its IPC handle.
#pragma once

#include "cuda-api.h"
#include "handle-table.h"

namespace ckpt {

class DeviceMemory : public Object {
 public:
  static constexpr Kind kKind = Kind::memory;

  DeviceMemory(uint32_t device, uint64_t bytes);
  DeviceMemory(uint32_t device, const cudaIpcMemHandle_t& handle, uint64_t bytes);
  // Synchronises with the device (cudaFree, cudaIpcCloseMemHandle), so work that was enqueued before has ended.
  ~DeviceMemory() override;

  uint32_t device() const noexcept { return device_; }
  uint64_t bytes() const noexcept { return bytes_; }
  uint8_t* at(uint64_t offset) const noexcept { return static_cast<uint8_t*>(pointer_) + offset; }
  bool opened() const noexcept { return opened_; }

 private:
  uint32_t device_;
  uint64_t bytes_;
  bool opened_;
  void* pointer_ = nullptr;
};

}  // namespace ckpt
