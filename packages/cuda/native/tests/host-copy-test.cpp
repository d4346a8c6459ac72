// The copy of the host library's devices. Not in the tests of the CUDA library.
#include "host/copy.h"

#include <cstring>

#include "test.h"

using namespace test;

TEST("copy_bytes copies every alignment, length and overlap") {
  const std::vector<uint8_t> source = random_bytes(400'000, 1);
  for (uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{131'071}, uint64_t{131'072},
                         uint64_t{131'201}, uint64_t{262'144}}) {
    for (uint64_t from : {0u, 1u, 31u}) {
      for (uint64_t to : {0u, 1u, 33u, 127u}) {
        std::vector<uint8_t> target(400'000, 0);
        ckpt::copy_bytes(target.data() + to, source.data() + from, bytes);
        CHECK(memcmp(target.data() + to, source.data() + from, bytes) == 0);
        CHECK_EQ(target[to + bytes], 0);
        CHECK(to == 0 || target[to - 1] == 0);
      }
    }
  }
  std::vector<uint8_t> target = source;
  ckpt::copy_bytes(target.data() + 1000, target.data(), 300'000);
  CHECK(memcmp(target.data() + 1000, source.data(), 300'000) == 0);
}
