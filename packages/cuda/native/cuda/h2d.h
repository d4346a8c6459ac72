// Copies out of host memory, cut where a registration ends: one that crosses from one into the next fails
// (cudaErrorInvalidValue).
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "backend.h"
#include "buffer.h"
#include "cuda-api.h"

namespace ckpt {

// pitch_max: bytes; what cudaMemcpy2DAsync takes.
void enqueue_h2d(cudaStream_t stream, uint8_t* to, const Buffer& from, const CopyRows& rows,
                 uint64_t pitch_max);

// Many copies, given to the device at once: it goes from one to the next without a pause, which is 3 us where each is a call of
// its own (16 GB in pieces of 3 MiB: 55.4 GB/s instead of 52.9 on an H200).
class H2dBatch {
 public:
  // CKPT_ERR_CHANGED when the file behind the buffer has changed.
  void add(uint8_t* to, const Buffer& from, uint64_t from_offset, uint64_t bytes);
  // Of the files behind the buffers: to be kept until the device has read them.
  std::vector<std::shared_ptr<File::Reader>> readers() const;
  void enqueue(cudaStream_t stream);

 private:
  std::vector<void*> targets_;
  std::vector<const void*> sources_;
  std::vector<size_t> sizes_;
  std::unordered_map<const File*, std::shared_ptr<File::Reader>> readers_;
};

}  // namespace ckpt
