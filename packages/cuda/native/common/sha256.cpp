#include "sha256.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace ckpt {
namespace {

alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

using Compress = void (*)(uint32_t* state, const uint8_t* blocks, uint64_t block_count);

uint32_t rotate_right(uint32_t value, int by) { return value >> by | value << (32 - by); }

// Round k of eight: the variable that is called a in the standard is v[-k mod 8].
inline __attribute__((always_inline)) void round_portable(uint32_t* v, int k, uint32_t word) {
  const auto at = [&](int role) -> uint32_t& { return v[(role - k + 8) % 8]; };
  const uint32_t e = at(4);
  const uint32_t a = at(0);
  const uint32_t e1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
  const uint32_t t1 = at(7) + e1 + ((e & at(5)) ^ (~e & at(6))) + word;
  const uint32_t e0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
  at(3) += t1;
  at(7) = t1 + e0 + ((a & at(1)) ^ (a & at(2)) ^ (at(1) & at(2)));
}

void compress_portable(uint32_t* state, const uint8_t* blocks, uint64_t block_count) {
  for (; block_count > 0; block_count--, blocks += 64) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
      uint32_t word;
      memcpy(&word, blocks + 4 * i, 4);
      w[i] = __builtin_bswap32(word);
    }
    for (int i = 16; i < 64; i++) {
      const uint32_t s0 =
          rotate_right(w[i - 15], 7) ^ rotate_right(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const uint32_t s1 =
          rotate_right(w[i - 2], 17) ^ rotate_right(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t v[8];
    memcpy(v, state, sizeof v);
    // Eight rounds turn the roles of the variables once round, so that none is moved.
    for (int i = 0; i < 64; i += 8) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; k++) round_portable(v, k, kRound[i + k] + w[i + k]);
    }
    for (int i = 0; i < 8; i++) state[i] += v[i];
  }
}

#if defined(__x86_64__)
// The instructions keep the state as two vectors, ABEF and CDGH; each rounds2 does two rounds.
__attribute__((target("sha,sse4.1,ssse3"))) void compress_sha_ni(uint32_t* state,
                                                                 const uint8_t* blocks,
                                                                 uint64_t block_count) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  __m128i low = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state)), 0xB1);
  __m128i high =
      _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4)), 0x1B);
  __m128i abef = _mm_alignr_epi8(low, high, 8);
  __m128i cdgh = _mm_blend_epi16(high, low, 0xF0);
  for (; block_count > 0; block_count--, blocks += 64) {
    const __m128i abef_before = abef;
    const __m128i cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; i++) {
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + 16 * i)),
                              swap);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      const __m128i words = w[i & 3];
      __m128i sum =
          _mm_add_epi32(words, _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
      if (i < 12) {
        const __m128i next = w[(i + 1) & 3];
        const __m128i last = w[(i + 3) & 3];
        __m128i extended = _mm_sha256msg1_epu32(words, next);
        extended = _mm_add_epi32(extended, _mm_alignr_epi8(last, w[(i + 2) & 3], 4));
        w[i & 3] = _mm_sha256msg2_epu32(extended, last);
      }
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  low = _mm_shuffle_epi32(abef, 0x1B);
  high = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(low, high, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(high, low, 8));
}

bool has_sha_ni() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (1u << 19)) == 0 || (c & (1u << 9)) == 0)
    return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29)) != 0;
}
#endif

std::atomic<bool> force_portable{false};

Compress choose() {
#if defined(__x86_64__)
  static const bool sha_ni = has_sha_ni();
  if (sha_ni && !force_portable.load(std::memory_order_relaxed)) return compress_sha_ni;
#endif
  return compress_portable;
}

}  // namespace

void sha256_force_portable(bool portable) { force_portable = portable; }

Sha256::Sha256()
    : state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::update(const void* bytes, uint64_t count) {
  const Compress compress = choose();
  const uint8_t* from = static_cast<const uint8_t*>(bytes);
  const uint64_t held = total_ % 64;
  total_ += count;
  if (held > 0) {
    const uint64_t wanted = count < 64 - held ? count : 64 - held;
    memcpy(block_ + held, from, wanted);
    from += wanted;
    count -= wanted;
    if (held + wanted < 64) return;
    compress(state_, block_, 1);
  }
  compress(state_, from, count / 64);
  if (count % 64 > 0) memcpy(block_, from + count / 64 * 64, count % 64);
}

void Sha256::finish(uint8_t digest[kSha256Bytes]) {
  const uint64_t bits = total_ * 8;
  uint8_t padding[72] = {0x80};
  const uint64_t held = total_ % 64;
  const uint64_t zeros = (held < 56 ? 56 : 120) - held;
  for (int i = 0; i < 8; i++) padding[zeros + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(padding, zeros + 8);
  for (int i = 0; i < 8; i++) {
    const uint32_t word = __builtin_bswap32(state_[i]);
    memcpy(digest + 4 * i, &word, 4);
  }
}

}  // namespace ckpt
