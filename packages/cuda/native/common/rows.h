// Rows of bytes, each a pitch behind the one before it.
#pragma once

#include <cstdint>

namespace ckpt {

// From the first byte of the first row to the last one of the last row; UINT64_MAX, which is
// outside of everything, where that is no number of 64 bits.
inline uint64_t rows_bytes(uint64_t pitch, uint64_t width, uint64_t height) {
  if (width == 0 || height == 0) return 0;
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(height - 1, pitch, &bytes)) return UINT64_MAX;
  return __builtin_add_overflow(bytes, width, &bytes) ? UINT64_MAX : bytes;
}

}  // namespace ckpt
