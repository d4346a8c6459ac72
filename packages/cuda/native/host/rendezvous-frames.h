// What a member and the rendezvous say to each other: one hello, one answer.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "rendezvous-id.h"

namespace ckpt {

// Of this process, random.
using ProcessId = std::array<uint8_t, 16>;

constexpr uint32_t kHelloMagic = 0x74706b63;
constexpr uint32_t kFramesVersion = 1;
constexpr uint32_t kWorkerAddressBytesMax = 64u << 10;
constexpr uint32_t kTableBytesMax = 64u << 20;
constexpr uint32_t kAnswerTextBytesMax = 512;

// Then address_bytes bytes: how the member's process is reached (a UCX worker's address).
struct Hello {
  uint32_t magic;
  uint32_t version;
  Secret secret;
  uint32_t members;
  uint32_t member;
  ProcessId process;
  uint32_t address_bytes;
};
static_assert(sizeof(Hello) == 68);

// Then `bytes` bytes: of CKPT_OK a table, else a text. The table: u32 processes, u32 process of
// each member, and of each process u32 bytes and its address.
struct Answer {
  uint32_t status;
  uint32_t bytes;
};

// Processes are numbered by their lowest member.
struct MemberTable {
  std::vector<uint32_t> process_of;
  std::vector<std::vector<uint8_t>> addresses;
};

}  // namespace ckpt
