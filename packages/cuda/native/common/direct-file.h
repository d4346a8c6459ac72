// Reading a file past the page cache (O_DIRECT).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace ckpt {

// Memory of one reading thread for whole blocks of a file: tensors begin anywhere in files and at
// other places in buffers, while the device wants all of it aligned.
class BounceBuffer {
 public:
  // At least `bytes` bytes, aligned to DirectFile's blocks; the content is lost when it grows.
  uint8_t* of(uint64_t bytes);

 private:
  struct Free {
    void operator()(uint8_t* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<uint8_t, Free> bytes_;
  uint64_t size_ = 0;
};

class DirectFile {
 public:
  // Opens the file of `fd` once more and tries one block. Null where the file system or its device
  // refuses.
  static std::unique_ptr<DirectFile> open(int fd);
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;

  // Bytes from `offset` on that are in `to` then: fewer than `bytes` where the file ends, where
  // reading fails, and none once the device has refused; a buffered read has to bring the rest or
  // to say what is wrong.
  uint64_t read_some(uint64_t offset, uint64_t bytes, uint8_t* to, BounceBuffer& bounce);

 private:
  DirectFile(int fd, uint64_t block_bytes) : fd_(fd), block_bytes_(block_bytes) {}
  uint64_t read_blocks(uint64_t begin, uint64_t bytes, uint8_t* to);

  const int fd_;
  const uint64_t block_bytes_;  // a power of two
  std::atomic<bool> refused_{false};
};

}  // namespace ckpt
