// What every file of this folder needs of CUDA: errors as exceptions, the current device, the driver's functions.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "error.h"

namespace ckpt {

// Throws CKPT_ERR_DEVICE, CKPT_ERR_DEVICE_LOST for an error that ends the context, CKPT_ERR_MEMORY for want of memory.
void check_cuda(cudaError_t error, const char* what);
void check_driver(CUresult result, const char* what);

// True for errors after which no call on this context can succeed: the process must end.
bool is_sticky(cudaError_t error) noexcept;

// Makes the device current for the calling thread. CKPT_ERR_INVALID when there is no such device.
void use_device(uint32_t device);
uint32_t device_count();

// Functions of libcuda.so.1, found through the runtime so that the library loads where no driver is.
struct Driver {
  CUresult (*stream_wait_value32)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
  CUresult (*stream_write_value32)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);
  CUresult (*error_string)(CUresult, const char**);
};
const Driver& driver();

}  // namespace ckpt
