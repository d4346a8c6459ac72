#include "communicator.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "common/ucx-api.h"
#include "process-communicator.h"
#include "rendezvous-id.h"
#include "rendezvous.h"

namespace ckpt {
namespace {

// Where the members with one id wait for each other.
struct Meeting {
  explicit Meeting(uint32_t members) : group(std::make_shared<HostGroup>(members)) {}
  std::shared_ptr<HostGroup> group;
  std::set<uint32_t> here;
  bool complete = false;
  WakeList came;
};

struct Meetings {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<Meeting>> by_id;
};

Meetings& meetings() {
  static Meetings all;
  return all;
}

std::string text_of(const uint8_t* id) {
  return std::string(reinterpret_cast<const char*>(id), CKPT_COMMUNICATOR_ID_BYTES);
}

std::string prefix() { return "ckpt-host-" + std::to_string(getpid()) + "-"; }

std::shared_ptr<Meeting> enter(const CommunicatorPlace& place) {
  const std::string id = text_of(place.id);
  if (id.rfind(prefix(), 0) != 0) {
    fail(CKPT_ERR_UNSUPPORTED,
         "the id is not of a communicator among several processes, nor was it made in this one");
  }
  std::lock_guard lock(meetings().mutex);
  std::weak_ptr<Meeting>& known = meetings().by_id[id];
  std::shared_ptr<Meeting> meeting = known.lock();
  if (meeting == nullptr) known = meeting = std::make_shared<Meeting>(place.members);
  if (meeting->group->members() != place.members) {
    fail(CKPT_ERR_INVALID, "a communicator of %u members has the id of one of %u", place.members,
         meeting->group->members());
  }
  if (!meeting->here.insert(place.member).second) {
    fail(CKPT_ERR_STATE, "member %u has come already", place.member);
  }
  if (meeting->here.size() == place.members) {
    meeting->complete = true;
    meetings().by_id.erase(id);
  }
  return meeting;
}

// False: meanwhile everybody has come.
bool leave(const CommunicatorPlace& place, Meeting& meeting) {
  std::lock_guard lock(meetings().mutex);
  if (meeting.complete) return false;
  meeting.here.erase(place.member);
  if (meeting.here.empty()) meetings().by_id.erase(text_of(place.id));
  return true;
}

bool is_complete(const Meeting& meeting) {
  std::lock_guard lock(meetings().mutex);
  return meeting.complete;
}

}  // namespace

void make_communicator_id(uint32_t processes, uint8_t* id) {
  static std::atomic<uint64_t> next{1};
  if (processes > 1) {
    Ucx::get();  // says that it is missing before anybody waits
    const RendezvousId made = open_rendezvous();
    std::memcpy(id, &made, sizeof made);
    return;
  }
  const std::string text = prefix() + std::to_string(next++);
  std::memset(id, 0, CKPT_COMMUNICATOR_ID_BYTES);
  std::memcpy(id, text.data(), text.size());
}

std::shared_ptr<Communicator> meet_communicator(const CommunicatorPlace& place, Signal* signal,
                                                uint32_t timeout_ms) {
  if (const auto id = read_rendezvous_id(place.id))
    return ProcessCommunicator::meet(*id, place, signal, timeout_ms);
  return HostCommunicator::meet(place, signal, timeout_ms);
}

std::shared_ptr<HostCommunicator> HostCommunicator::meet(const CommunicatorPlace& place,
                                                         Signal* signal, uint32_t timeout_ms) {
  const std::shared_ptr<Meeting> meeting = enter(place);
  meeting->came.wake_all();
  try {
    wait_for(meeting->came, signal, timeout_ms, "the communicator's other members",
             [&] { return is_complete(*meeting); });
  } catch (const Error&) {
    if (leave(place, *meeting)) throw;
  }
  return std::make_shared<HostCommunicator>(place, meeting->group);
}

void HostCommunicator::broadcast(std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory,
                                 uint32_t root, uint64_t offset, uint64_t bytes) {
  group_->broadcast_on(member_, std::static_pointer_cast<HostStream>(std::move(stream)),
                       std::static_pointer_cast<HostMemory>(std::move(memory)), root, offset,
                       bytes);
}

}  // namespace ckpt
