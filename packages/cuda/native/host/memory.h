// Device memory of the host library: POSIX shared memory, whose name is the exported handle.
#pragma once

#include <memory>

#include "common/backend.h"
#include "common/host-memory.h"
#include "devices.h"

namespace ckpt {

class HostMemory : public Memory {
 public:
  static std::shared_ptr<HostMemory> allocate(uint32_t device, uint64_t bytes);
  static std::shared_ptr<HostMemory> open(uint32_t device, const uint8_t* handle, uint64_t bytes);
  HostMemory(uint32_t device, uint64_t bytes) : Memory(device, bytes) {}

  uint8_t* address() const noexcept { return static_cast<uint8_t*>(shared_->address()); }
  void export_handle(uint8_t* handle) override;
  void fill(uint64_t offset, uint64_t bytes, uint32_t value) override;
  void sha256(uint64_t offset, uint64_t bytes, uint8_t* digest) override;

 private:
  std::unique_ptr<DeviceBytes> reserved_;  // null for opened memory
  std::unique_ptr<SharedMemory> shared_;
};

}  // namespace ckpt
