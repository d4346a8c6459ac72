// Another process that shares a buffer with its peers, and what a receiver attaches of it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "test.h"

namespace test {

// The content of what is shared.
constexpr uint32_t kOwnerSeed = 77;

class Owner {
 public:
  explicit Owner(uint64_t bytes);
  ~Owner();
  Owner(const Owner&) = delete;
  void signal(int number) const;
  void kill_and_wait();
  // Lets it end, which it must do as a process that is well.
  void end();

  const std::vector<uint8_t>& address() const { return address_; }
  const std::vector<uint8_t>& key() const { return key_; }

 private:
  pid_t child_ = 0;
  int out_ = -1;  // it ends when this is closed
  std::vector<uint8_t> address_, key_;
};

uint32_t open_p2p();

struct Opened {
  ~Opened() { ckpt_p2p_close(p2p); }
  uint32_t p2p = open_p2p();
};

// What one has of an owner.
struct Attached {
  Attached(uint32_t p2p, const Owner& owner);
  Attached(uint32_t p2p, const std::vector<uint8_t>& address, const std::vector<uint8_t>& key);
  ~Attached();
  Attached(const Attached&) = delete;
  uint32_t peer = 0, remote = 0;
};

// This process's side: connected and attached. Skips the test where there is no UCX.
struct Reader : Opened, Attached {
  explicit Reader(const Owner& owner) : Attached(p2p, owner) {}
};

// share BYTES: prints address and key, ends when its stdin ends.
int owner_child(const std::vector<std::string>& arguments);
int reader_child(const std::vector<std::string>& arguments);
// See p2p-bench.cpp.
int bench_read_child(const std::vector<std::string>& arguments);

}  // namespace test
