// memcpy for ranges that are larger than the caches.
#pragma once

#include <cstdint>

namespace ckpt {

// The ranges may overlap.
void copy_bytes(void* to, const void* from, uint64_t bytes);

}  // namespace ckpt
