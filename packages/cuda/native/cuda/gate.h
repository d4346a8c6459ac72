// What a stream's work waits for on the host.
//
// A stream of this library gives its work to CUDA in order, and only when nothing that the work
// waits for on the device is still missing there: what a member's broadcast needs of a root that
// has not called yet is not enqueued. Order among streams is then always expressed by CUDA events
// that were recorded before they are waited for. A wait for memory (cuStreamWaitValue32) could be
// enqueued first, but cuda.h warns that such order is not visible to CUDA: streams that share a
// hardware queue deadlock, and so does every call that waits for the device (cudaFree, say).
#pragma once

#include <memory>
#include <mutex>
#include <vector>

namespace ckpt {

class CudaStream;

// Streams whose work may go on; see CudaStream::wake.
using Wakes = std::vector<std::shared_ptr<CudaStream>>;

// Opens once. What was written before open() is visible to whoever has passed.
class Gate {
 public:
  // True when it is open. Else `stream` (null: nobody) is among those that open() returns.
  bool passes(const std::shared_ptr<CudaStream>& stream);
  void open(Wakes& wakes);

 private:
  std::mutex mutex_;
  bool open_ = false;
  std::vector<std::weak_ptr<CudaStream>> waiting_;
};

}  // namespace ckpt
