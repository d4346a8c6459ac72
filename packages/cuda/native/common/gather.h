// Small pieces of host memory, copied into one buffer by the calling thread.
#pragma once

#include <cstdint>
#include <memory>

#include "buffer.h"

namespace ckpt {

// See ckpt_buffer_gather. CKPT_ERR_HANDLE, CKPT_ERR_INVALID and, for a lease that is broken before,
// CKPT_ERR_CHANGED come before the first byte is written.
void gather(uint32_t to_handle, const ckpt_gather_piece* pieces, uint32_t count);

}  // namespace ckpt
