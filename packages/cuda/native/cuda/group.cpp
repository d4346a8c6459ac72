#include "group.h"

#include <chrono>
#include <thread>

namespace ckpt {

namespace {

constexpr uint32_t kMaxMembers = 64;
// Larger than every number that a broadcast waits for; the comparison is cyclic, on the signed difference.
constexpr uint32_t kReleaseAll = 0x7fffffff;
constexpr auto kAbortInterval = std::chrono::microseconds(100);
constexpr auto kAbortLimit = std::chrono::seconds(5);

CUdeviceptr address(volatile uint32_t* value) {
  return reinterpret_cast<CUdeviceptr>(value);  // with unified addressing, the host's address is the device's
}

}  // namespace

Group::Group(uint32_t members) : members_(members) {
  if (members == 0 || members > kMaxMembers) fail(CKPT_ERR_INVALID, "a group of %u members (1 to %u)", members, kMaxMembers);
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, 2 * members * sizeof(Counter), cudaHostAllocPortable | cudaHostAllocMapped), "cudaHostAlloc");
  counters_ = static_cast<Counter*>(memory);
  for (uint32_t i = 0; i < 2 * members; i++) counters_[i].value = 0;
}

Group::~Group() { cudaFreeHost(counters_); }

Group::Member& Group::require_member(uint32_t member) {
  if (member >= members_.size()) fail(CKPT_ERR_INVALID, "member %u of a group of %zu", member, members_.size());
  return members_[member];
}

void Group::join(uint32_t member, std::shared_ptr<Stream> stream, std::shared_ptr<DeviceMemory> memory) {
  std::lock_guard lock(mutex_);
  Member& self = require_member(member);
  if (self.stream) fail(CKPT_ERR_STATE, "member %u has joined already", member);
  if (stream->device() != memory->device()) {
    fail(CKPT_ERR_INVALID, "member %u: its stream is on device %u, its memory on %u", member, stream->device(), memory->device());
  }
  self.stream = std::move(stream);
  self.memory = std::move(memory);
}

void Group::write(Stream& stream, Counter& counter, uint32_t value) {
  check_driver(driver().stream_write_value32(stream.raw(), address(&counter.value), value, CU_STREAM_WRITE_VALUE_DEFAULT), "cuStreamWriteValue32");
}

void Group::wait(Stream& stream, Counter& counter, uint32_t value) {
  check_driver(driver().stream_wait_value32(stream.raw(), address(&counter.value), value, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
}

void Group::enqueue_root(Member& self, uint32_t root, uint32_t number) {
  write(*self.stream, posted(root), number);
  for (uint32_t other = 0; other < members_.size(); other++) {
    if (other != root) wait(*self.stream, taken(other), number);
  }
}

void Group::enqueue_copy(Member& self, uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) {
  std::shared_ptr<DeviceMemory> source;
  {
    std::lock_guard lock(mutex_);
    source = require_member(root).memory;
  }
  if (!source) fail(CKPT_ERR_STATE, "the root %u has not joined", root);
  require_range("broadcast", offset, bytes, source->bytes());
  wait(*self.stream, posted(root), self.broadcasts);
  check_cuda(cudaMemcpyPeerAsync(self.memory->at(offset), static_cast<int>(self.memory->device()), source->at(offset),
                                 static_cast<int>(source->device()), bytes, self.stream->raw()),
             "cudaMemcpyPeerAsync");
  write(*self.stream, taken(member), self.broadcasts);
}

void Group::broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) {
  Member* self = nullptr;
  {
    std::lock_guard lock(mutex_);
    self = &require_member(member);
    require_member(root);
  }
  if (!self->stream) fail(CKPT_ERR_STATE, "member %u has not joined", member);
  if (aborted()) fail(CKPT_ERR_ABORTED, "the group was aborted");
  require_range("broadcast", offset, bytes, self->memory->bytes());
  use_device(self->stream->device());
  self->broadcasts++;
  self->stream->follow(shared_from_this());
  if (member == root) {
    enqueue_root(*self, root, self->broadcasts);
  } else {
    enqueue_copy(*self, member, root, offset, bytes);
  }
}

// A member's own write behind its copy lowers its counter again, so the counters are raised until every stream is idle.
void Group::abort() {
  aborted_.store(true, std::memory_order_release);
  const auto deadline = std::chrono::steady_clock::now() + kAbortLimit;
  for (;;) {
    for (uint32_t i = 0; i < 2 * members_.size(); i++) counters_[i].value = kReleaseAll;
    bool idle = true;
    {
      std::lock_guard lock(mutex_);
      for (const Member& member : members_) {
        if (!member.stream) continue;
        use_device(member.stream->device());
        if (cudaStreamQuery(member.stream->raw()) == cudaErrorNotReady) idle = false;
      }
    }
    if (idle) return;
    if (std::chrono::steady_clock::now() >= deadline) fail(CKPT_ERR_TIMEOUT, "the group's streams are still busy after its abort");
    std::this_thread::sleep_for(kAbortInterval);
  }
}

}  // namespace ckpt

using namespace ckpt;

int32_t ckpt_group_create(uint32_t members, uint32_t* group_p) {
  return guard([&] {
    require(group_p, "group_p");
    *group_p = add_object(std::make_shared<Group>(members));
  });
}

int32_t ckpt_group_join(uint32_t group, uint32_t member, uint32_t stream, uint32_t memory) {
  return guard([&] { find_object<Group>(group)->join(member, find_object<Stream>(stream), find_object<DeviceMemory>(memory)); });
}

int32_t ckpt_group_broadcast(uint32_t group, uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) {
  return guard([&] { find_object<Group>(group)->broadcast(member, root, offset, bytes); });
}

int32_t ckpt_group_abort(uint32_t group) {
  return guard([&] { find_object<Group>(group)->abort(); });
}

int32_t ckpt_group_destroy(uint32_t group) {
  return guard([&] { destroy_object<Group>(group); });
}
