// Broadcast among the ranks of one process by copies between their rings.
//
// Nothing on the host orders the members: each call enqueues on its own stream, and the streams meet through counters in
// pinned host memory (cuStreamWriteValue32, cuStreamWaitValue32), which take no multiprocessor and no spinning thread.
//
//   root      post = n                                     wait until every other member's taken >= n
//   member    wait until root's post >= n, copy its bytes, taken = n
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "device-memory.h"
#include "stream.h"

namespace ckpt {

class Group : public Object, public std::enable_shared_from_this<Group> {
 public:
  static constexpr Kind kKind = Kind::group;

  explicit Group(uint32_t members);
  ~Group() override;

  void join(uint32_t member, std::shared_ptr<Stream> stream, std::shared_ptr<DeviceMemory> memory);
  void broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes);
  void abort();
  bool aborted() const noexcept { return aborted_.load(std::memory_order_acquire); }

 private:
  // A counter has a cache line of its own: the devices of several members write them at the same time.
  struct alignas(64) Counter {
    volatile uint32_t value;
  };
  struct Member {
    std::shared_ptr<Stream> stream;
    std::shared_ptr<DeviceMemory> memory;
    uint32_t broadcasts = 0;
  };

  Counter& posted(uint32_t member) noexcept { return counters_[2 * member]; }
  Counter& taken(uint32_t member) noexcept { return counters_[2 * member + 1]; }
  Member& require_member(uint32_t member);
  void enqueue_root(Member& self, uint32_t root, uint32_t number);
  void enqueue_copy(Member& self, uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes);
  void write(Stream& stream, Counter& counter, uint32_t value);
  void wait(Stream& stream, Counter& counter, uint32_t value);

  std::mutex mutex_;  // of members_; broadcasts of different members run side by side otherwise
  std::vector<Member> members_;
  Counter* counters_ = nullptr;
  std::atomic<bool> aborted_{false};
};

}  // namespace ckpt
