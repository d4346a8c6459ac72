// What of a file the page cache holds.
#pragma once

#include <cstdint>
#include <optional>

namespace ckpt {

struct CachedBytes {
  uint64_t looked;  // bytes of the ranges that were looked at
  uint64_t cached;  // of these, those in the page cache
};

// Looks at up to 64 ranges of 1 MiB that are spread over the file, at all of a smaller one: mincore
// takes some 17 ms for a GB, which a checkpoint must not wait for. Nothing when the kernel does not
// tell: it tells of a file only who may write to it.
std::optional<CachedBytes> cached_bytes(int fd, uint64_t file_bytes);

}  // namespace ckpt
