// Whether ckpt_init has been called.
#pragma once

#include "ckpt.h"

namespace ckpt {

void initialize(const ckpt_config& config);
// CKPT_ERR_STATE before initialize().
void require_initialized();
// What ckpt_init was called with.
uint64_t read_bytes_per_second();

}  // namespace ckpt
