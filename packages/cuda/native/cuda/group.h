// Broadcast among the ranks of one process by copies between their rings.
//
// Nothing on the host orders the members: each call enqueues on its own stream, and the streams meet through counters in
// pinned host memory (cuStreamWriteValue32, cuStreamWaitValue32), which take no multiprocessor and no spinning thread.
//
//   root      post = n                                     wait until every other member's taken >= n
//   member    wait until root's post >= n, copy its bytes, taken = n
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "abort-flag.h"
#include "memory.h"
#include "stream.h"

namespace ckpt {

class CudaGroup : public Group {
 public:
  explicit CudaGroup(uint32_t members);
  ~CudaGroup() override;

  void join(uint32_t member, std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory) override;
  void broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) override;
  void abort() override;

 private:
  // A counter has a cache line of its own: the devices of several members write them at the same time.
  struct alignas(64) Counter {
    volatile uint32_t value;
  };
  struct Member {
    std::weak_ptr<CudaStream> stream;
    std::weak_ptr<CudaMemory> memory;
    uint32_t broadcasts = 0;
  };
  // A broadcast that some members have not called yet: what the first said holds for all.
  struct Call {
    uint32_t root;
    uint64_t offset;
    uint64_t bytes;
    uint32_t arrived;
  };

  Counter& posted(uint32_t member) noexcept { return counters_[2 * member]; }
  Counter& taken(uint32_t member) noexcept { return counters_[2 * member + 1]; }
  void agree(uint32_t number, uint32_t root, uint64_t offset, uint64_t bytes);
  bool release_streams();
  void enqueue_root(cudaStream_t stream, uint32_t root, uint32_t number);
  void enqueue_copy(cudaStream_t stream, uint32_t member, const CudaMemory& to, const CudaMemory& from, const Call& call, uint32_t number);

  std::mutex mutex_;
  std::vector<Member> members_;
  std::deque<Call> calls_;       // call i of the deque is broadcast first_call_ + i
  uint32_t first_call_ = 1;
  Counter* counters_ = nullptr;
  std::shared_ptr<AbortFlag> abort_ = std::make_shared<AbortFlag>();
};

}  // namespace ckpt
