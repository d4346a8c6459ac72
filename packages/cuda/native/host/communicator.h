// Communicators among the ranks of this process: one group of copies for those that have the id.
#pragma once

#include <memory>

#include "common/backend.h"
#include "group.h"

namespace ckpt {

// Of members in this process, or in as many as `processes`.
void make_communicator_id(uint32_t processes, uint8_t* id);
std::shared_ptr<Communicator> meet_communicator(const CommunicatorPlace& place, Signal* signal,
                                                uint32_t timeout_ms);

class HostCommunicator : public Communicator {
 public:
  static std::shared_ptr<HostCommunicator> meet(const CommunicatorPlace& place, Signal* signal,
                                                uint32_t timeout_ms);
  HostCommunicator(const CommunicatorPlace& place, std::shared_ptr<HostGroup> group)
      : Communicator(place.device, place.members), member_(place.member), group_(std::move(group)) {}

  void broadcast(std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory, uint32_t root,
                 uint64_t offset, uint64_t bytes) override;
  // Every member's at once.
  void abort() override { group_->abort(); }

 private:
  uint32_t member_;
  std::shared_ptr<HostGroup> group_;
};

}  // namespace ckpt
