#include "cuda-api.h"

#include <algorithm>
#include <atomic>

namespace ckpt {

bool is_sticky(cudaError_t error) noexcept {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      // cudaErrorContained and cudaErrorTensorMemoryLeak, which older toolkits do not name.
      return static_cast<int>(error) == 226 || static_cast<int>(error) == 721;
  }
}

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky must not be reported again by the next call
  const ckpt_status status = is_sticky(error)                        ? CKPT_ERR_DEVICE_LOST
                             : error == cudaErrorMemoryAllocation    ? CKPT_ERR_MEMORY
                             : error == cudaErrorNotSupported        ? CKPT_ERR_UNSUPPORTED
                             : error == cudaErrorInsufficientDriver  ? CKPT_ERR_UNSUPPORTED
                             : error == cudaErrorNoDevice            ? CKPT_ERR_UNSUPPORTED
                                                                     : CKPT_ERR_DEVICE;
  fail(status, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

uint32_t device_count() {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "counting CUDA devices");
  return static_cast<uint32_t>(count);
}

namespace {

std::atomic<int> first_used{-1};

}  // namespace

void use_device(uint32_t device) {
  static const uint32_t count = device_count();
  if (device >= count) fail(CKPT_ERR_INVALID, "device %u: there are %u", device, count);
  check_cuda(cudaSetDevice(static_cast<int>(device)), "cudaSetDevice");
  int none = -1;
  first_used.compare_exchange_strong(none, static_cast<int>(device));
}

void use_any_device() { use_device(static_cast<uint32_t>(std::max(first_used.load(), 0))); }

uint64_t allocation_bytes(const void* pointer) {
  using Range = CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr);
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &address, 12000,
                                                             cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    return UINT64_MAX;
  }
  CUdeviceptr base = 0;
  size_t bytes = 0;
  const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(pointer);
  if (reinterpret_cast<Range>(address)(&base, &bytes, at) != CUDA_SUCCESS) return UINT64_MAX;
  return base + bytes - at;
}

}  // namespace ckpt
