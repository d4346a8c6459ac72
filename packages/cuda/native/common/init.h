// Whether ckpt_init has been called.
#pragma once

#include "ckpt.h"

namespace ckpt {

void initialize(const ckpt_config& config);
// CKPT_ERR_STATE before initialize().
void require_initialized();
// The same, and CKPT_ERR_INVALID when there is no such device.
void require_device(uint32_t device);
// What ckpt_init was called with.
uint64_t read_bytes_per_second();

}  // namespace ckpt
