// The shared-memory file that torch's rebuild_cuda_tensor takes as the sender's reference counts.
#pragma once

#include <memory>
#include <string>

#include "handle-table.h"
#include "host-memory.h"

namespace ckpt {

class Refcounter : public Object {
 public:
  static constexpr Kind kKind = Kind::refcounter;
  // torch/csrc/CudaIPCTypes.h: CUDA_IPC_REF_COUNTER_FILE_SIZE counters; libshm puts a 64-byte
  // header before them.
  static constexpr uint64_t kHeaderBytes = 64;
  static constexpr uint64_t kCounters = 10000;

  Refcounter();
  const std::string& name() const noexcept { return memory_->name(); }

 private:
  std::unique_ptr<SharedMemory> memory_;
};

}  // namespace ckpt
