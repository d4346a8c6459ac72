#pragma once

#include <cstdint>

namespace ckpt {

// Lets two devices copy from each other's memory directly, where they can; else CUDA goes through
// host memory. Once a pair for the life of the process.
void let_devices_meet(uint32_t one, uint32_t other);

}  // namespace ckpt
