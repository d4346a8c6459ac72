// Communicators among ranks of several processes. Those of one process are a group of copies; the
// bytes come to a process once, from the root to the lowest of its members, who gives them on.
#pragma once

#include <memory>
#include <mutex>

#include "common/backend.h"
#include "group.h"
#include "rendezvous-id.h"

namespace ckpt {

class ProcessCommunicator : public Communicator {
 public:
  // What the members of one process share.
  struct Party;

  static std::shared_ptr<ProcessCommunicator> meet(const RendezvousId& id,
                                                   const CommunicatorPlace& place, Signal* signal,
                                                   uint32_t timeout_ms);
  ProcessCommunicator(const CommunicatorPlace& place, std::shared_ptr<Party> party);

  void broadcast(std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory, uint32_t root,
                 uint64_t offset, uint64_t bytes) override;
  // Every member's of this process at once. CKPT_ERR_TIMEOUT as the header says.
  void abort() override;
  // As abort(), unless all that this member has called is complete: then what was sent leaves, and
  // other members of this process may go on.
  void close() override;

 private:
  HostGroup::RootWork root_work(uint64_t number, const std::shared_ptr<HostMemory>& memory,
                                uint64_t offset, uint64_t bytes) const;
  HostGroup::RootWork leader_work(uint64_t number, uint32_t process,
                                  const std::shared_ptr<HostMemory>& memory, uint64_t offset,
                                  uint64_t bytes) const;

  const uint32_t member_;
  const std::shared_ptr<Party> party_;
  // Held by every piece of work that has not run yet.
  const std::shared_ptr<const bool> busy_ = std::make_shared<const bool>(true);
  std::mutex mutex_;
  uint64_t next_ = 0;
};

}  // namespace ckpt
