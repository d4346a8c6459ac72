#include "memory.h"

#include <cstring>

#include "common/sha256.h"
#include "common/threads.h"

namespace ckpt {
namespace {

constexpr uint32_t kPopulateThreads = 16;

}  // namespace

std::shared_ptr<HostMemory> HostMemory::allocate(uint32_t device, uint64_t bytes) {
  auto memory = std::make_shared<HostMemory>(device, bytes);
  memory->reserved_ = std::make_unique<DeviceBytes>(device, bytes);
  memory->shared_.reset(SharedMemory::create(bytes));
  // As cudaMalloc: the memory is there when the call returns, and no copy fails for the lack of it.
  populate(memory->address(), bytes, true, usable_threads(kPopulateThreads));
  return memory;
}

std::shared_ptr<HostMemory> HostMemory::open(uint32_t device, const uint8_t* handle,
                                             uint64_t bytes) {
  const char* name = reinterpret_cast<const char*>(handle);
  auto memory = std::make_shared<HostMemory>(device, bytes);
  memory->shared_.reset(
      SharedMemory::open(std::string(name, strnlen(name, CKPT_HANDLE_BYTES)), bytes));
  return memory;
}

void HostMemory::export_handle(uint8_t* handle) {
  const std::string& name = shared_->name();
  if (!shared_->created()) fail(CKPT_ERR_STATE, "%s was opened, not allocated here", name.c_str());
  if (name.size() >= CKPT_HANDLE_BYTES) fail(CKPT_ERR_STATE, "%s is too long", name.c_str());
  memset(handle, 0, CKPT_HANDLE_BYTES);
  memcpy(handle, name.data(), name.size());
}

void HostMemory::fill(uint64_t offset, uint64_t bytes, uint32_t value) {
  memset(address() + offset, static_cast<int>(value), bytes);
}

void HostMemory::sha256(uint64_t offset, uint64_t bytes, uint8_t* digest) {
  Sha256 hash;
  hash.update(address() + offset, bytes);
  hash.finish(digest);
}

}  // namespace ckpt
