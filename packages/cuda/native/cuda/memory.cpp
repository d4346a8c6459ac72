#include "memory.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "outstanding.h"
#include "sha256.h"

namespace ckpt {
namespace {

constexpr uint64_t kBlockBytes = 2 << 20;
constexpr uint64_t kHashChunkBytes = 8 << 20;

// Pinning costs milliseconds, which a small range does not win back.
constexpr uint64_t kPinnedFromBytes = 4 << 20;

class Staging {
 public:
  explicit Staging(uint64_t bytes) {
    if (bytes < kPinnedFromBytes) {
      pageable_.resize(bytes);
    } else {
      check_cuda(cudaMallocHost(&pinned_, bytes), "cudaMallocHost");
    }
  }
  ~Staging() {
    if (pinned_ != nullptr) cudaFreeHost(pinned_);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  void* pointer() noexcept { return pinned_ != nullptr ? pinned_ : pageable_.data(); }

 private:
  std::vector<uint8_t> pageable_;
  void* pinned_ = nullptr;
};

}  // namespace

// Small allocations of CUDA share blocks of 2 MiB, and an exported handle opens the whole block:
// an allocation has its blocks for itself (CUDA C++ Programming Guide, Interprocess Communication).
CudaMemory::CudaMemory(uint32_t device, uint64_t bytes) : Memory(device, bytes), opened_(false) {
  use_device(device);
  const uint64_t blocks = bytes / kBlockBytes + (bytes % kBlockBytes != 0);
  const cudaError_t error = blocks > UINT64_MAX / kBlockBytes
                                ? cudaErrorMemoryAllocation
                                : cudaMalloc(&pointer_, blocks * kBlockBytes);
  if (error != cudaErrorMemoryAllocation) {
    check_cuda(error, "cudaMalloc");
    return;
  }
  cudaGetLastError();
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  fail(CKPT_ERR_MEMORY, "device %u: %llu bytes asked for, %zu of %zu are free", device,
       static_cast<unsigned long long>(bytes), free_bytes, total_bytes);
}

CudaMemory::CudaMemory(uint32_t device, const uint8_t* handle, uint64_t bytes)
    : Memory(device, bytes), opened_(true) {
  static_assert(sizeof(cudaIpcMemHandle_t) == CKPT_HANDLE_BYTES);
  cudaIpcMemHandle_t raw;
  std::memcpy(&raw, handle, sizeof raw);
  use_device(device);
  check_cuda(cudaIpcOpenMemHandle(&pointer_, raw, cudaIpcMemLazyEnablePeerAccess),
             "cudaIpcOpenMemHandle");
  const uint64_t there = allocation_bytes(pointer_);
  if (there >= bytes) return;
  cudaIpcCloseMemHandle(pointer_);
  fail(CKPT_ERR_INVALID, "the handle's memory has %llu bytes, not %llu",
       static_cast<unsigned long long>(there), static_cast<unsigned long long>(bytes));
}

CudaMemory::~CudaMemory() {
  const QuietDevice quiet;
  if (pointer_ == nullptr || cudaSetDevice(static_cast<int>(device())) != cudaSuccess) return;
  const cudaError_t error = opened_ ? cudaIpcCloseMemHandle(pointer_) : cudaFree(pointer_);
  if (error != cudaSuccess) cudaGetLastError();  // a lost device frees everything with the process
}

void CudaMemory::export_handle(uint8_t* handle) {
  if (opened_) fail(CKPT_ERR_STATE, "memory of another process cannot be exported again");
  use_device(device());
  cudaIpcMemHandle_t raw;
  check_cuda(cudaIpcGetMemHandle(&raw, pointer_), "cudaIpcGetMemHandle");
  std::memcpy(handle, &raw, sizeof raw);
}

void CudaMemory::fill(uint64_t offset, uint64_t bytes, uint32_t value) {
  use_device(device());
  check_cuda(cudaMemsetAsync(at(offset), static_cast<int>(value), bytes, cudaStreamPerThread), "cudaMemset");
  check_cuda(cudaStreamSynchronize(cudaStreamPerThread), "cudaMemset");
}

void CudaMemory::sha256(uint64_t offset, uint64_t bytes, uint8_t* digest) {
  use_device(device());
  Staging staging(std::min(bytes, kHashChunkBytes));
  Sha256 hash;
  for (uint64_t done = 0; done < bytes; done += kHashChunkBytes) {
    const uint64_t chunk = std::min(kHashChunkBytes, bytes - done);
    check_cuda(cudaMemcpyAsync(staging.pointer(), at(offset + done), chunk, cudaMemcpyDeviceToHost, cudaStreamPerThread), "reading device memory");
    check_cuda(cudaStreamSynchronize(cudaStreamPerThread), "reading device memory");
    hash.update(staging.pointer(), chunk);
  }
  hash.finish(digest);
}

}  // namespace ckpt
