// Broadcast among the ranks of this process by copies from the root's memory.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "stream.h"

namespace ckpt {

class HostGroup : public Group, public std::enable_shared_from_this<HostGroup> {
 public:
  explicit HostGroup(uint32_t members) : Group(members), joined_(members) {}
  void join(uint32_t member, std::shared_ptr<Stream> stream,
            std::shared_ptr<Memory> memory) override;
  void broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) override;
  void abort() override;

  // What the root does on its stream besides: `before` its bytes are given to the members (what it
  // throws they get instead), `after` they have taken them, whatever has happened.
  struct RootWork {
    std::function<void(HostStream&)> before;
    std::function<void(HostStream&)> after;
  };
  // As broadcast() of a member that need not have joined. stream and memory are not null, and the
  // range is the memory's.
  void broadcast_on(uint32_t member, std::shared_ptr<HostStream> stream,
                    std::shared_ptr<HostMemory> memory, uint32_t root, uint64_t offset,
                    uint64_t bytes, RootWork work = {});

 private:
  struct Member {
    bool joined = false;
    std::weak_ptr<HostStream> stream;
    std::weak_ptr<HostMemory> memory;
    uint64_t next_round = 0;
  };
  // The k-th broadcast of every member.
  struct Round {
    uint32_t root;
    uint64_t offset;
    uint64_t bytes;
    uint32_t calls = 0;
    bool ready = false;                  // the root's stream has come to it
    std::optional<Error> failure;        // of the root's stream: then there is nothing to take
    std::shared_ptr<HostMemory> source;  // the root's memory
    uint32_t taken = 0;
  };

  void enqueue_locked(uint32_t member, std::shared_ptr<HostStream> stream,
                      std::shared_ptr<HostMemory> memory, uint32_t root, uint64_t offset,
                      uint64_t bytes, RootWork work);
  std::shared_ptr<Round> round_locked(Member& member, uint32_t root, uint64_t offset,
                                      uint64_t bytes);
  void lead(HostStream& stream, Round& round, std::shared_ptr<HostMemory> memory,
            const RootWork& work);
  void give(std::optional<Error> failure, Round& round, std::shared_ptr<HostMemory> memory);
  void take(HostStream& stream, Round& round, HostMemory& memory);
  [[noreturn]] static void fail_aborted();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> aborted_{false};
  std::vector<Member> joined_;
  std::map<uint64_t, std::shared_ptr<Round>> rounds_;  // those that not every member has called yet
};

}  // namespace ckpt
