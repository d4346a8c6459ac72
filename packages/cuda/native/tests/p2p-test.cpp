// Reads of another process's memory.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>

#include "environment.h"
#include "p2p-owner.h"

using namespace test;

namespace {

constexpr uint64_t kSharedBytes = (24ull << 20) + 321;
constexpr uint64_t kMemoryBytes = 32ull << 20;
constexpr const char* kWays[] = {"", "tcp", "posix,self", "posix,cma,self"};

struct Target {
  uint32_t stream = new_stream(0), memory = new_memory(kMemoryBytes, 0);
  ~Target() {
    ckpt_stream_destroy(stream);
    ckpt_memory_free(memory);
  }
};

std::string transport_of(uint32_t peer) {
  char text[65536];
  OK(ckpt_p2p_transport(peer, text, sizeof text));
  return text;
}

}  // namespace

TEST("p2p: every byte of a peer's buffer, of many sizes and at odd offsets") {
  const std::vector<uint8_t> content = random_bytes(kSharedBytes, kOwnerSeed);
  for (const char* way : kWays) {
    const Environment setting("UCX_TLS", way);
    const Owner owner(kSharedBytes);
    const Reader reader(owner);
    const Target to;
    std::vector<uint8_t> expected(kMemoryBytes, 9);
    OK(ckpt_memory_fill(to.memory, 0, kMemoryBytes, 9));
    uint64_t at = 5, from = 3;
    for (uint64_t bytes : {1ull, 7ull, 4096ull, 65537ull, 1048573ull, 4194305ull, 20971521ull}) {
      OK(ckpt_copy_remote(to.stream, to.memory, at, reader.remote, from, bytes));
      memcpy(expected.data() + at, content.data() + from, bytes);
      at += bytes + 11;
      from += 1001;
    }
    OK(ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, kSharedBytes, 0));
    OK(ckpt_stream_sync(to.stream, 0, 60000));
    CHECK_EQ(memory_sha256(to.memory, 0, kMemoryBytes), sha256_of(expected));
    printf("      \"%s\": %s\n", way, transport_of(reader.peer).c_str());
    GIVES(CKPT_ERR_INVALID, ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, kSharedBytes, 1));
    GIVES(CKPT_ERR_INVALID, ckpt_copy_remote(to.stream, to.memory, kMemoryBytes, reader.remote, 0, 1));
    GIVES(CKPT_ERR_INVALID, ckpt_copy_remote(to.stream, to.memory, 0, reader.remote, UINT64_MAX, 2));
  }
}
