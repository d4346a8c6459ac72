// Host memory that devices copy from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend.h"
#include "file.h"
#include "handle-table.h"
#include "host-memory.h"

namespace ckpt {

class Buffer : public Object {
 public:
  static constexpr Kind kKind = Kind::buffer;

  static std::shared_ptr<Buffer> allocate(uint64_t bytes, uint32_t flags);
  // On this NUMA node where that can be (numa.h): `*placed` tells.
  static std::shared_ptr<Buffer> allocate_near(uint64_t bytes, int32_t node, bool* placed);
  // CKPT_ERR_STATE when the file holds no lease.
  static std::shared_ptr<Buffer> map(std::shared_ptr<File> file);
  ~Buffer() override;

  uint8_t* address() const noexcept { return address_; }
  uint64_t bytes() const noexcept { return bytes_; }
  // Null unless the buffer is a mapping of this file: then it is read-only, may be read only while
  // the file's lease holds (File::enter, File::read_leased), and lives as long as the buffer.
  const std::shared_ptr<File>& file() const noexcept { return file_; }
  // Registrations begin at multiples of this; no copy may cross from one into the next. bytes()
  // when there is one.
  uint64_t pin_piece_bytes() const noexcept { return pin_piece_bytes_; }
  // CKPT_ERR_STATE unless it is shared memory.
  std::string shared_path() const;

  // A copy by the processor; CKPT_ERR_CHANGED when the file behind it has changed. The range has
  // been checked.
  void copy_out(uint64_t offset, uint64_t bytes, void* to);
  void sha256(uint64_t offset, uint64_t bytes, uint8_t* digest);

 private:
  Buffer() = default;
  void take_anonymous(uint64_t bytes);
  void populate_and_pin();
  void pin(uint32_t threads, bool read_only);

  std::unique_ptr<AnonymousMemory> anonymous_;
  std::unique_ptr<SharedMemory> shared_;
  std::shared_ptr<File> file_;
  uint8_t* address_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t pin_piece_bytes_ = 0;
  uint64_t pinned_pieces_ = 0;
};

}  // namespace ckpt
