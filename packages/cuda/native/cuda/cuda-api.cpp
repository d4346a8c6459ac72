#include "cuda-api.h"

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
      return false;
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

void check_driver(CUresult result, const char* what) {
  if (result == CUDA_SUCCESS) return;
  const char* text = nullptr;
  driver().error_string(result, &text);
  const cudaError_t error = static_cast<cudaError_t>(result);  // the runtime numbers its errors as the driver does
  fail(is_sticky(error) ? CKPT_ERR_DEVICE_LOST : CKPT_ERR_DEVICE, "%s: %s (error %d)", what,
       text == nullptr ? "unknown" : text, static_cast<int>(result));
}

uint32_t device_count() {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "counting CUDA devices");
  return static_cast<uint32_t>(count);
}

void use_device(uint32_t device) {
  static const uint32_t count = device_count();
  if (device >= count) fail(CKPT_ERR_INVALID, "device %u: there are %u", device, count);
  check_cuda(cudaSetDevice(static_cast<int>(device)), "cudaSetDevice");
}

namespace {

template <class Function>
void find(const char* symbol, Function& function) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  check_cuda(cudaGetDriverEntryPointByVersion(symbol, &address, 12000, cudaEnableDefault, &found), symbol);
  if (found != cudaDriverEntryPointSuccess) fail(CKPT_ERR_UNSUPPORTED, "the CUDA driver has no %s", symbol);
  function = reinterpret_cast<Function>(address);
}

Driver find_all() {
  Driver found{};
  find("cuStreamWaitValue32", found.stream_wait_value32);
  find("cuStreamWriteValue32", found.stream_write_value32);
  find("cuGetErrorString", found.error_string);
  return found;
}

}  // namespace

const Driver& driver() {
  static const Driver found = find_all();
  return found;
}

}  // namespace ckpt
