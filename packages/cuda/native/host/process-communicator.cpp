#include "process-communicator.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "common/random.h"
#include "process-link.h"
#include "rendezvous-client.h"
#include "rendezvous.h"

namespace ckpt {
namespace {

constexpr uint32_t kEndMs = 5000;

}  // namespace

struct ProcessCommunicator::Party {
  // Called by each member of this process with the same table; the first connects.
  void settle(const MemberTable& all, uint32_t member);
  uint32_t local(uint32_t member) const {
    const auto found = std::lower_bound(locals.begin(), locals.end(), member);
    return static_cast<uint32_t>(found - locals.begin());
  }

  ProcessLink link;
  ProcessId process{};
  uint32_t waiting = 0;  // for the others; guarded by the parties' mutex

  std::mutex mutex;
  bool settled = false;
  std::optional<Error> failure;
  uint32_t open = 0;  // members whose communicator is not closed

  // Do not change once it is settled.
  std::vector<uint32_t> process_of;
  uint32_t self = 0;
  std::vector<uint32_t> locals;  // members of this process
  std::shared_ptr<HostGroup> group;
};

namespace {

using Party = ProcessCommunicator::Party;

struct Parties {
  std::mutex mutex;
  std::map<Secret, std::weak_ptr<Party>> by_secret;
};

Parties& parties() {
  static Parties& all = *new Parties;
  return all;
}

std::shared_ptr<Party> enter(const RendezvousId& id) {
  std::lock_guard lock(parties().mutex);
  std::weak_ptr<Party>& known = parties().by_secret[id.secret];
  std::shared_ptr<Party> party = known.lock();
  if (party == nullptr) {
    try {
      party = std::make_shared<Party>();
      fill_random(party->process.data(), party->process.size());
    } catch (...) {
      parties().by_secret.erase(id.secret);
      throw;
    }
    known = party;
  }
  party->waiting++;
  return party;
}

// Where nobody of this process waits any more, nobody else will meet it.
void leave(const RendezvousId& id, const std::shared_ptr<Party>& party, bool failed) {
  std::lock_guard lock(parties().mutex);
  if (--party->waiting > 0) return;
  parties().by_secret.erase(id.secret);
  if (failed) close_rendezvous(id);
}

}  // namespace

void ProcessCommunicator::Party::settle(const MemberTable& all, uint32_t member) {
  std::lock_guard lock(mutex);
  if (failure) throw Error(*failure);
  open++;
  if (std::exchange(settled, true)) return;
  process_of = all.process_of;
  self = process_of[member];
  for (uint32_t i = 0; i < process_of.size(); i++) {
    if (process_of[i] == self) locals.push_back(i);
  }
  group = std::make_shared<HostGroup>(static_cast<uint32_t>(locals.size()));
  try {
    link.connect(all, self);
  } catch (const Error& error) {
    failure = error;
    throw;
  }
}

std::shared_ptr<ProcessCommunicator> ProcessCommunicator::meet(const RendezvousId& id,
                                                               const CommunicatorPlace& place,
                                                               Signal* signal,
                                                               uint32_t timeout_ms) {
  const auto deadline = deadline_after(timeout_ms);
  const auto party = enter(id);
  try {
    const std::vector<uint8_t>& address = party->link.address();
    const Hello hello{kHelloMagic,   kFramesVersion, id.secret, place.members, place.member,
                      party->process, static_cast<uint32_t>(address.size())};
    party->settle(meet_members(id, hello, address, signal, timeout_ms), place.member);
    party->link.wait_connected(signal, deadline);
  } catch (...) {
    leave(id, party, true);
    throw;
  }
  leave(id, party, false);
  return std::make_shared<ProcessCommunicator>(place, party);
}

ProcessCommunicator::ProcessCommunicator(const CommunicatorPlace& place,
                                         std::shared_ptr<Party> party)
    : Communicator(place.device, place.members), member_(place.member), party_(std::move(party)) {}

HostGroup::RootWork ProcessCommunicator::root_work(uint64_t number,
                                                   const std::shared_ptr<HostMemory>& memory,
                                                   uint64_t offset, uint64_t bytes) const {
  const auto sends = std::make_shared<ProcessLink::Sends>();
  return {[party = party_, busy = busy_, sends, number, memory, offset, bytes](HostStream& stream) {
            *sends = stream.error() ? party->link.send_failure(number, *stream.error())
                                    : party->link.send(number, memory->address() + offset, bytes);
          },
          [memory, sends](HostStream&) { sends->wait(); }};
}

HostGroup::RootWork ProcessCommunicator::leader_work(uint64_t number, uint32_t process,
                                                     const std::shared_ptr<HostMemory>& memory,
                                                     uint64_t offset, uint64_t bytes) const {
  return {[party = party_, busy = busy_, number, process, memory, offset, bytes](
              HostStream& stream) {
            if (stream.error()) {
              party->link.drop(number, process);
              return;
            }
            party->link.receive(number, process, memory->address() + offset, bytes);
            stream.in_chunks(bytes, [](uint64_t, uint64_t) {});  // at the configured rate
          },
          nullptr};
}

void ProcessCommunicator::broadcast(std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory,
                                    uint32_t root, uint64_t offset, uint64_t bytes) {
  auto to = std::static_pointer_cast<HostMemory>(std::move(memory));
  const uint32_t process = party_->process_of[root];
  const uint32_t self = party_->local(member_);
  const bool here = process == party_->self;
  std::lock_guard lock(mutex_);
  HostGroup::RootWork work;
  if (here && root == member_) work = root_work(next_, to, offset, bytes);
  if (!here && self == 0) work = leader_work(next_, process, to, offset, bytes);
  party_->group->broadcast_on(self, std::static_pointer_cast<HostStream>(std::move(stream)),
                              std::move(to), here ? party_->local(root) : 0, offset, bytes,
                              std::move(work));
  next_++;
}

void ProcessCommunicator::abort() {
  party_->group->abort();
  party_->link.abort();
  party_->link.wait_ended(kEndMs);
}

void ProcessCommunicator::close() {
  bool last;
  {
    std::lock_guard lock(party_->mutex);
    last = --party_->open == 0;
  }
  if (busy_.use_count() > 1) {
    abort();
  } else {
    party_->group->abort();
    if (!last) return;
    party_->link.close();
    party_->link.wait_ended(kEndMs);
  }
}

}  // namespace ckpt
