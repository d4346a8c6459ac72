#include "device-memory.h"

#include <algorithm>
#include <cstring>

#include "sha256.h"

namespace ckpt {

DeviceMemory::DeviceMemory(uint32_t device, uint64_t bytes) : device_(device), bytes_(bytes), opened_(false) {
  if (bytes == 0) fail(CKPT_ERR_INVALID, "an allocation of 0 bytes");
  use_device(device);
  const cudaError_t error = cudaMalloc(&pointer_, bytes);
  if (error != cudaErrorMemoryAllocation) return check_cuda(error, "cudaMalloc");
  cudaGetLastError();
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  fail(CKPT_ERR_MEMORY, "device %u: %llu bytes asked for, %zu of %zu are free", device,
       static_cast<unsigned long long>(bytes), free_bytes, total_bytes);
}

DeviceMemory::DeviceMemory(uint32_t device, const cudaIpcMemHandle_t& handle, uint64_t bytes)
    : device_(device), bytes_(bytes), opened_(true) {
  use_device(device);
  check_cuda(cudaIpcOpenMemHandle(&pointer_, handle, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
}

DeviceMemory::~DeviceMemory() {
  if (pointer_ == nullptr) return;
  if (cudaSetDevice(static_cast<int>(device_)) != cudaSuccess) return;
  const cudaError_t error = opened_ ? cudaIpcCloseMemHandle(pointer_) : cudaFree(pointer_);
  if (error != cudaSuccess) cudaGetLastError();  // a lost device frees everything with the process
}

namespace {

constexpr uint64_t kHashChunkBytes = 8 << 20;

// Pinned staging: pageable copies would go through a buffer of the driver anyway.
class Staging {
 public:
  Staging() { check_cuda(cudaMallocHost(&pointer_, kHashChunkBytes), "cudaMallocHost"); }
  ~Staging() { cudaFreeHost(pointer_); }
  void* pointer() const noexcept { return pointer_; }

 private:
  void* pointer_ = nullptr;
};

void hash_memory(const DeviceMemory& memory, uint64_t offset, uint64_t bytes, uint8_t* digest_p) {
  use_device(memory.device());
  Staging staging;
  Sha256 hash;
  for (uint64_t done = 0; done < bytes; done += kHashChunkBytes) {
    const uint64_t chunk = std::min(kHashChunkBytes, bytes - done);
    check_cuda(cudaMemcpy(staging.pointer(), memory.at(offset + done), chunk, cudaMemcpyDeviceToHost), "reading device memory");
    hash.update(staging.pointer(), chunk);
  }
  hash.finish(digest_p);
}

}  // namespace

}  // namespace ckpt

using namespace ckpt;

int32_t ckpt_memory_alloc(uint32_t device, uint64_t bytes, uint32_t* memory_p) {
  return guard([&] {
    require(memory_p, "memory_p");
    *memory_p = add_object(std::make_shared<DeviceMemory>(device, bytes));
  });
}

int32_t ckpt_memory_free(uint32_t memory) {
  return guard([&] { destroy_object<DeviceMemory>(memory); });
}

int32_t ckpt_memory_export(uint32_t memory, uint8_t* handle_p) {
  return guard([&] {
    static_assert(sizeof(cudaIpcMemHandle_t) == CKPT_HANDLE_BYTES);
    require(handle_p, "handle_p");
    const auto object = find_object<DeviceMemory>(memory);
    if (object->opened()) fail(CKPT_ERR_STATE, "memory of another process cannot be exported again");
    use_device(object->device());
    cudaIpcMemHandle_t handle;
    check_cuda(cudaIpcGetMemHandle(&handle, object->at(0)), "cudaIpcGetMemHandle");
    std::memcpy(handle_p, &handle, sizeof handle);
  });
}

int32_t ckpt_memory_open(uint32_t device, const uint8_t* handle, uint64_t bytes, uint32_t* memory_p) {
  return guard([&] {
    require(handle, "handle");
    require(memory_p, "memory_p");
    cudaIpcMemHandle_t raw;
    std::memcpy(&raw, handle, sizeof raw);
    *memory_p = add_object(std::make_shared<DeviceMemory>(device, raw, bytes));
  });
}

int32_t ckpt_memory_fill(uint32_t memory, uint64_t offset, uint64_t bytes, uint32_t value) {
  return guard([&] {
    const auto object = find_object<DeviceMemory>(memory);
    require_range("fill", offset, bytes, object->bytes());
    if (value > 255) fail(CKPT_ERR_INVALID, "fill: %u is not a byte", value);
    use_device(object->device());
    check_cuda(cudaMemset(object->at(offset), static_cast<int>(value), bytes), "cudaMemset");
    check_cuda(cudaStreamSynchronize(nullptr), "cudaMemset");
  });
}

int32_t ckpt_memory_sha256(uint32_t memory, uint64_t offset, uint64_t bytes, uint8_t* digest_p) {
  return guard([&] {
    require(digest_p, "digest_p");
    const auto object = find_object<DeviceMemory>(memory);
    require_range("sha256", offset, bytes, object->bytes());
    hash_memory(*object, offset, bytes, digest_p);
  });
}
