// Bytes that nobody can guess.
#pragma once

#include <cstddef>

namespace ckpt {

// CKPT_ERR_IO.
void fill_random(void* bytes, size_t count);

}  // namespace ckpt
