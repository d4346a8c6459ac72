// Broadcast among the ranks of one process by copies between their rings.
//
// The streams meet by events. A member's copy is enqueued once the root's stream has come to the
// broadcast, and the root's stream goes on once every member's copy is enqueued; until then the
// stream is held on the host (gate.h).
//
//   root      record `ready`                                 wait for every member's copy
//   member    wait for `ready`, copy, record its copy
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "memory.h"
#include "stream.h"

namespace ckpt {

class CudaGroup : public Group, public std::enable_shared_from_this<CudaGroup> {
 public:
  explicit CudaGroup(uint32_t members) : Group(members), joined_(members) {}
  void join(uint32_t member, std::shared_ptr<Stream> stream,
            std::shared_ptr<Memory> memory) override;
  void broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) override;
  // What the device has been given already still completes; the rest never starts.
  void abort() override;

 private:
  using Turn = CudaStream::Turn;
  struct Member {
    std::mutex calling;  // one broadcast at a time; taken before every other lock
    bool joined = false;
    std::weak_ptr<CudaStream> stream;
    std::weak_ptr<CudaMemory> memory;
    uint64_t next_round = 0;
  };
  // The k-th broadcast of every member.
  struct Round {
    uint64_t number;
    uint32_t root;
    uint64_t offset;
    uint64_t bytes;
    Gate posted;                           // the root's stream has come to it
    std::shared_ptr<const Error> failure;  // of the root's stream: then there is nothing to take
    std::shared_ptr<CudaMemory> source;    // the root's memory
    std::shared_ptr<Mark> ready;
    Gate all_taken;                        // nothing more will be enqueued that reads `source`
    uint32_t taken = 0;
    std::vector<std::shared_ptr<Mark>> copies;
  };

  std::shared_ptr<Round> round_locked(uint64_t number, uint32_t root, uint64_t offset,
                                      uint64_t bytes);
  void add_root(CudaStream& stream, std::shared_ptr<Round> round,
                std::shared_ptr<CudaMemory> memory);
  void add_member(CudaStream& stream, std::shared_ptr<Round> round,
                  std::shared_ptr<CudaMemory> memory);
  void give(Turn& turn, Round& round, std::shared_ptr<CudaMemory> memory);
  void collect(Turn& turn, Round& round);
  void take(Turn& turn, Round& round, std::shared_ptr<CudaMemory> memory);
  std::shared_ptr<Mark> copy(Turn& turn, Round& round, std::shared_ptr<CudaMemory> memory);
  void count_locked(Round& round, uint32_t taken, Wakes& wakes);
  void require_not_aborted_locked() const;

  std::mutex mutex_;  // taken behind a stream's
  bool aborted_ = false;
  std::vector<Member> joined_;
  std::map<uint64_t, std::shared_ptr<Round>> rounds_;  // those that have not ended on the root
};

}  // namespace ckpt
