#include "group.h"

#include <chrono>
#include <thread>

namespace ckpt {
namespace {

constexpr uint32_t kMaxMembers = 64;
// Larger than every number that a broadcast waits for: the device compares the signed difference.
constexpr uint32_t kReleaseAll = 0x7fffffff;
constexpr auto kAbortInterval = std::chrono::microseconds(100);
constexpr auto kAbortLimit = std::chrono::seconds(5);

// With unified addressing, the host's address of the counter is the device's.
CUdeviceptr address(volatile uint32_t& value) { return reinterpret_cast<CUdeviceptr>(&value); }

void write_value(cudaStream_t stream, volatile uint32_t& counter, uint32_t value) {
  check_driver(driver().stream_write_value32(stream, address(counter), value, CU_STREAM_WRITE_VALUE_DEFAULT), "cuStreamWriteValue32");
}

void wait_value(cudaStream_t stream, volatile uint32_t& counter, uint32_t value) {
  check_driver(driver().stream_wait_value32(stream, address(counter), value, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
}

}  // namespace

CudaGroup::CudaGroup(uint32_t members) : Group(members), members_(members) {
  if (members == 0 || members > kMaxMembers) fail(CKPT_ERR_INVALID, "a group of %u members (1 to %u)", members, kMaxMembers);
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, 2 * members * sizeof(Counter), cudaHostAllocPortable | cudaHostAllocMapped), "cudaHostAlloc");
  counters_ = static_cast<Counter*>(memory);
  for (uint32_t i = 0; i < 2 * members; i++) counters_[i].value = 0;
}

CudaGroup::~CudaGroup() { cudaFreeHost(counters_); }

void CudaGroup::join(uint32_t member, std::shared_ptr<Stream> stream, std::shared_ptr<Memory> memory) {
  std::lock_guard lock(mutex_);
  Member& self = members_[member];
  if (self.stream.lock()) fail(CKPT_ERR_STATE, "member %u has joined already", member);
  if (stream->device() != memory->device()) {
    fail(CKPT_ERR_INVALID, "member %u: its stream is on device %u, its memory on %u", member, stream->device(), memory->device());
  }
  for (const Member& other : members_) {
    if (other.stream.lock() == stream) fail(CKPT_ERR_INVALID, "member %u: its stream has joined for another member", member);
  }
  self.stream = std::static_pointer_cast<CudaStream>(stream);
  self.memory = std::static_pointer_cast<CudaMemory>(memory);
}

// Under mutex_. Members that disagree would copy different bytes, or wait for each other for ever.
void CudaGroup::agree(uint32_t number, uint32_t root, uint64_t offset, uint64_t bytes) {
  const uint32_t index = number - first_call_;
  if (index == calls_.size()) calls_.push_back({root, offset, bytes, 0});
  Call& call = calls_[index];
  if (call.root != root || call.offset != offset || call.bytes != bytes) {
    fail(CKPT_ERR_INVALID, "broadcast %u: a member says root %u, offset %llu, %llu bytes, another root %u, offset %llu, %llu bytes", number,
         root, static_cast<unsigned long long>(offset), static_cast<unsigned long long>(bytes), call.root,
         static_cast<unsigned long long>(call.offset), static_cast<unsigned long long>(call.bytes));
  }
  call.arrived++;
  while (!calls_.empty() && calls_.front().arrived == members()) {
    calls_.pop_front();
    first_call_++;
  }
}

void CudaGroup::enqueue_root(cudaStream_t stream, uint32_t root, uint32_t number) {
  write_value(stream, posted(root).value, number);
  for (uint32_t other = 0; other < members(); other++) {
    if (other != root) wait_value(stream, taken(other).value, number);
  }
}

void CudaGroup::enqueue_copy(cudaStream_t stream, uint32_t member, const CudaMemory& to, const CudaMemory& from, const Call& call,
                             uint32_t number) {
  wait_value(stream, posted(call.root).value, number);
  check_cuda(cudaMemcpyPeerAsync(to.at(call.offset), static_cast<int>(to.device()), from.at(call.offset), static_cast<int>(from.device()),
                                 call.bytes, stream),
             "cudaMemcpyPeerAsync");
  write_value(stream, taken(member).value, number);
}

void CudaGroup::broadcast(uint32_t member, uint32_t root, uint64_t offset, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  if (abort_->aborted()) fail(CKPT_ERR_ABORTED, "the group was aborted");
  Member& self = members_[member];
  const auto stream = self.stream.lock();
  const auto memory = self.memory.lock();
  if (!stream || !memory) fail(CKPT_ERR_STATE, "member %u has not joined", member);
  require_range("broadcast", offset, bytes, memory->bytes());
  const auto source = members_[root].memory.lock();
  if (!source) fail(CKPT_ERR_STATE, "the root %u has not joined", root);
  require_range("broadcast, at the root", offset, bytes, source->bytes());
  const cudaStream_t raw = stream->require_usable();
  agree(self.broadcasts + 1, root, offset, bytes);
  const uint32_t number = ++self.broadcasts;
  use_device(stream->device());
  stream->follow(abort_);
  if (member == root) {
    enqueue_root(raw, root, number);
  } else {
    enqueue_copy(raw, member, *memory, *source, {root, offset, bytes, 0}, number);
  }
}

// Opens every wait; true when no stream has work left.
bool CudaGroup::release_streams() {
  for (uint32_t i = 0; i < 2 * members(); i++) counters_[i].value = kReleaseAll;
  bool idle = true;
  for (const Member& member : members_) {
    const auto stream = member.stream.lock();
    if (!stream) continue;
    use_device(stream->device());
    idle = stream->idle() && idle;
  }
  return idle;
}

// A member's own write behind its copy lowers its counter again, so the counters are raised until every stream is idle.
void CudaGroup::abort() {
  abort_->set();
  const auto deadline = std::chrono::steady_clock::now() + kAbortLimit;
  for (;;) {
    {
      std::lock_guard lock(mutex_);
      if (release_streams()) return;
    }
    if (std::chrono::steady_clock::now() >= deadline) fail(CKPT_ERR_TIMEOUT, "the group's streams are still busy after its abort");
    std::this_thread::sleep_for(kAbortInterval);
  }
}

}  // namespace ckpt
