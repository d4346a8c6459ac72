// Rows of pinned host memory into rows of device memory, by a kernel that reads the host's memory
// itself: the copy engines take longer for narrow ones, and wait between one copy and the next.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda-api.h"

namespace ckpt {

// In bytes but the height. height > 0, 0 < width <= both pitches.
struct HostRows {
  uint8_t* to;
  const uint8_t* from;
  uint64_t to_pitch;
  uint64_t from_pitch;
  uint64_t width;
  uint64_t height;
};

// Whether kernels of the device may read registered host memory at the host's addresses.
bool reads_host_memory(uint32_t device);

// On the current device, in any order. All of what is read is registered.
void enqueue_rows(cudaStream_t stream, const std::vector<HostRows>& pieces);

}  // namespace ckpt
