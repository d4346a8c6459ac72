// What every file of this folder needs of CUDA: errors as exceptions, the current device.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "error.h"

namespace ckpt {

// Throws CKPT_ERR_DEVICE, CKPT_ERR_DEVICE_LOST for an error that ends the context, CKPT_ERR_MEMORY for want of memory.
void check_cuda(cudaError_t error, const char* what);

// True for errors after which no call on this context can succeed: the process must end.
bool is_sticky(cudaError_t error) noexcept;

// Makes the device current for the calling thread. CKPT_ERR_INVALID when there is no such device.
void use_device(uint32_t device);
uint32_t device_count();

// For what belongs to no device: the first that was used, so that no other gets a context (some
// 500 MB of its memory).
void use_any_device();

// From the pointer to the end of its allocation; UINT64_MAX when the driver does not say.
uint64_t allocation_bytes(const void* pointer);

}  // namespace ckpt
