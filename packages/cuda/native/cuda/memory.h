// One cudaMalloc allocation, or one of another process that was opened by its IPC handle.
#pragma once

#include "backend.h"
#include "cuda-api.h"

namespace ckpt {

class CudaMemory : public Memory {
 public:
  CudaMemory(uint32_t device, uint64_t bytes);
  CudaMemory(uint32_t device, const uint8_t* handle, uint64_t bytes);
  // cudaFree and cudaIpcCloseMemHandle synchronise with the device, so work that was enqueued before has ended.
  ~CudaMemory() override;

  uint8_t* at(uint64_t offset) const noexcept { return static_cast<uint8_t*>(pointer_) + offset; }

  void export_handle(uint8_t* handle) override;
  void fill(uint64_t offset, uint64_t bytes, uint32_t value) override;
  void sha256(uint64_t offset, uint64_t bytes, uint8_t* digest) override;

 private:
  bool opened_;
  void* pointer_ = nullptr;
};

}  // namespace ckpt
