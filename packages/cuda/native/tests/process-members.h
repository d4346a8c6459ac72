// The members of a communicator among processes that are in this one, and their part in a known
// sequence of broadcasts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "test.h"

namespace test {

struct ProcessId128 {
  uint8_t bytes[CKPT_COMMUNICATOR_ID_BYTES] = {};
  std::string hex() const { return test::hex(bytes, sizeof bytes); }
  static ProcessId128 parse(const std::string& text);
  // For members of so many processes. Skips the test where there is no UCX.
  static ProcessId128 make(uint32_t processes);
};

// Member i of this process is on device i.
class ProcessMembers {
 public:
  ProcessMembers(const ProcessId128& id, uint32_t members, std::vector<uint32_t> mine,
                 uint64_t memory_bytes);
  ~ProcessMembers();
  ProcessMembers(const ProcessMembers&) = delete;

  // Broadcasts from turning roots, of many sizes and at odd offsets, checked byte for byte.
  void play();
  // Destroyed here, checked.
  void destroy();

  struct One {
    uint32_t member, communicator, stream, memory;
  };
  std::vector<One> all;

 private:
  void play_one(const One& self);
  uint32_t members_;
  uint64_t memory_bytes_;
};

constexpr uint64_t kPlayBytes = 24ull << 20;

int32_t join_processes(const ProcessId128& id, uint32_t device, uint32_t members, uint32_t member,
                       uint32_t signal, uint32_t limit_ms, uint32_t& communicator);

// Of a child: see host-process-members.cpp.
int communicate_child(const std::vector<std::string>& arguments);
// See host-process-bench.cpp.
int bench_broadcast_child(const std::vector<std::string>& arguments);

}  // namespace test
