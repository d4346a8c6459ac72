// Broadcasts among ranks: handles and arguments are checked here, the work is the backend's
// (backend.h).
#include <utility>

#include "backend.h"
#include "init.h"
#include "signals.h"

using namespace ckpt;

namespace {

constexpr uint32_t kGroupMembersMax = 256;
constexpr uint32_t kCommunicatorMembersMax = 65536;

}  // namespace

int32_t ckpt_group_create(uint32_t members, uint32_t* group_p) {
  return guard([&] {
    uint32_t& out = require(group_p, "group_p");
    require_initialized();
    if (members == 0 || members > kGroupMembersMax)
      fail(CKPT_ERR_INVALID, "a group has 1 to %u members", kGroupMembersMax);
    out = add_object(backend::group_create(members));
  });
}

int32_t ckpt_group_join(uint32_t group, uint32_t member, uint32_t stream, uint32_t memory) {
  return guard([&] {
    const auto object = find_object<Group>(group);
    auto on = find_object<Stream>(stream);
    auto ring = find_object<Memory>(memory);
    if (member >= object->members())
      fail(CKPT_ERR_INVALID, "member %u of %u", member, object->members());
    object->join(member, std::move(on), std::move(ring));
  });
}

int32_t ckpt_group_broadcast(uint32_t group, uint32_t member, uint32_t root, uint64_t offset,
                             uint64_t bytes) {
  return guard([&] {
    const auto object = find_object<Group>(group);
    if (member >= object->members() || root >= object->members()) {
      fail(CKPT_ERR_INVALID, "member %u, root %u of %u", member, root, object->members());
    }
    if (bytes == 0) fail(CKPT_ERR_INVALID, "a broadcast of 0 bytes");
    object->broadcast(member, root, offset, bytes);
  });
}

int32_t ckpt_group_abort(uint32_t group) {
  return guard([&] { find_object<Group>(group)->abort(); });
}

int32_t ckpt_group_destroy(uint32_t group) {
  return guard([&] { destroy_object<Group>(group); });
}

int32_t ckpt_communicator_id(uint32_t sharers, uint32_t processes, uint8_t* id_p) {
  return guard([&] {
    uint8_t* out = &require(id_p, "id_p");
    require_initialized();
    if (processes == 0 || processes > kCommunicatorMembersMax)
      fail(CKPT_ERR_INVALID, "a communicator is of 1 to %u processes", kCommunicatorMembersMax);
    backend::communicator_id(sharers, processes, out);
  });
}

int32_t ckpt_communicator_create(const uint8_t* id, uint32_t device, uint32_t members,
                                 uint32_t member, uint32_t sharers, uint32_t signal,
                                 uint32_t timeout_ms, uint32_t* communicator_p) {
  return guard([&] {
    uint32_t& out = require(communicator_p, "communicator_p");
    require(id, "id");
    require_device(device);
    if (members == 0 || members > kCommunicatorMembersMax)
      fail(CKPT_ERR_INVALID, "a communicator has 1 to %u members", kCommunicatorMembersMax);
    if (member >= members) fail(CKPT_ERR_INVALID, "member %u of %u", member, members);
    if (sharers == 0 || sharers > members)
      fail(CKPT_ERR_INVALID, "%u of %u members have its device", sharers, members);
    out = add_object(backend::communicator_create({id, device, members, member, sharers},
                                                  find_optional<Signal>(signal), timeout_ms));
  });
}

int32_t ckpt_communicator_broadcast(uint32_t communicator, uint32_t stream, uint32_t memory,
                                    uint32_t root, uint64_t offset, uint64_t bytes) {
  return guard([&] {
    const auto object = find_object<Communicator>(communicator);
    auto on = find_object<Stream>(stream);
    auto of = find_object<Memory>(memory);
    if (on->device() != object->device() || of->device() != object->device()) {
      fail(CKPT_ERR_INVALID, "the communicator is of device %u, the stream of %u, the memory of %u",
           object->device(), on->device(), of->device());
    }
    if (root >= object->members())
      fail(CKPT_ERR_INVALID, "root %u of %u", root, object->members());
    if (bytes == 0) fail(CKPT_ERR_INVALID, "a broadcast of 0 bytes");
    require_range("broadcast", offset, bytes, of->bytes());
    object->broadcast(std::move(on), std::move(of), root, offset, bytes);
  });
}

int32_t ckpt_communicator_abort(uint32_t communicator) {
  return guard([&] { find_object<Communicator>(communicator)->abort(); });
}

int32_t ckpt_communicator_destroy(uint32_t communicator) {
  return guard([&] { destroy_object<Communicator>(communicator); });
}
