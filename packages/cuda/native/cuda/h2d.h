// Copies out of host memory, cut where a registration ends: one that crosses from one into the next
// fails (cudaErrorInvalidValue).
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "backend.h"
#include "buffer.h"
#include "cuda-api.h"
#include "rows.h"

namespace ckpt {

// What a device can do.
struct H2dMeans {
  uint64_t pitch_max;  // bytes; what cudaMemcpy2DAsync takes
  bool reads_host;     // see reads_host_memory
};
H2dMeans h2d_means(uint32_t device);

// To be kept until the device has read the buffer; null when there is no file behind it.
// CKPT_ERR_CHANGED when that has changed.
std::shared_ptr<File::Reader> enter_file(const Buffer& buffer);

void enqueue_h2d(cudaStream_t stream, uint8_t* to, const Buffer& from, const CopyRows& rows,
                 const H2dMeans& means);

// Many copies, given to the device at once: it goes from one to the next without a pause, which is
// 3 us where each is a call of its own (16 GB in pieces of 3 MiB: 55.4 GB/s instead of 52.9 on an
// H200).
class H2dBatch {
 public:
  explicit H2dBatch(const H2dMeans& means) : means_(means) {}
  // The buffer has to stay. CKPT_ERR_CHANGED when the file behind it has changed.
  void add(uint8_t* to, const Buffer& from, const CopyRows& rows);
  // Of the files behind the buffers: to be kept until the device has read them.
  std::vector<std::shared_ptr<File::Reader>> readers() const;
  void enqueue(cudaStream_t stream);

 private:
  struct Other {
    uint8_t* to;
    const Buffer* from;
    CopyRows rows;
  };
  void enqueue_pieces(cudaStream_t stream);

  H2dMeans means_;
  std::vector<void*> targets_;
  std::vector<const void*> sources_;
  std::vector<size_t> sizes_;
  std::vector<HostRows> rows_;
  std::vector<Other> others_;
  std::unordered_map<const File*, std::shared_ptr<File::Reader>> readers_;
};

}  // namespace ckpt
