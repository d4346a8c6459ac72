// SHA-256 (FIPS 180-4), with the SHA extensions of x86 where the processor has them.
#pragma once

#include <cstdint>

namespace ckpt {

constexpr uint64_t kSha256Bytes = 32;

class Sha256 {
 public:
  Sha256();
  void update(const void* bytes, uint64_t count);
  void finish(uint8_t digest[kSha256Bytes]);

 private:
  uint32_t state_[8];
  uint8_t block_[64];
  uint64_t total_ = 0;
};

// For tests: the portable code even where the processor has SHA instructions.
void sha256_force_portable(bool portable);

}  // namespace ckpt
