// Memory of this machine: how much there is, shared memory by name, and populating a range before
// it is used.
#pragma once

#include <cstdint>
#include <string>

namespace ckpt {

constexpr uint64_t kHugePageBytes = 2ull << 20;

// What can still be allocated without the kernel ending processes: MemAvailable, cut to the
// cgroup's limit.
uint64_t available_memory_bytes();

// What the file system of POSIX shared memory has free, cut to available_memory_bytes().
uint64_t available_shared_bytes();

// CKPT_ERR_MEMORY with both figures when `bytes` are not available.
void require_memory(const char* what, uint64_t bytes, uint64_t available);

// Faults every page of a range in, by several threads. Throws CKPT_ERR_MEMORY instead of raising
// SIGBUS, when shared memory is full or a mapped file is shorter than the range.
void populate(void* address, uint64_t bytes, bool for_writing, uint32_t threads);

// Anonymous memory with huge pages advised, aligned to kHugePageBytes.
class AnonymousMemory {
 public:
  explicit AnonymousMemory(uint64_t bytes);
  ~AnonymousMemory();
  AnonymousMemory(const AnonymousMemory&) = delete;
  AnonymousMemory& operator=(const AnonymousMemory&) = delete;
  void* address() const noexcept { return address_; }

 private:
  void* address_;
  uint64_t mapped_bytes_;
};

// A POSIX shared-memory object "/ckpt-<pid>-<counter>-<random>", mapped for reading and writing.
// The one that created it removes the name again, also when its process ends normally, and holds a
// lock on it (flock), which the kernel gives up with the process, however that ends.
class SharedMemory {
 public:
  static SharedMemory* create(uint64_t bytes);
  // CKPT_ERR_INVALID for a name that this class does not make, or when the object is smaller than
  // `bytes`.
  static SharedMemory* open(const std::string& name, uint64_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  const std::string& name() const noexcept { return name_; }
  std::string path() const { return "/dev/shm" + name_; }
  void* address() const noexcept { return address_; }
  uint64_t bytes() const noexcept { return bytes_; }
  bool created() const noexcept { return lock_fd_ >= 0; }

 private:
  SharedMemory(std::string name, void* address, uint64_t bytes, int lock_fd);

  std::string name_;
  void* address_;
  uint64_t bytes_;
  int lock_fd_;  // -1 unless created here
};

// Removes the objects of processes that are gone: their pid is free and their lock is not held (a
// pid of another container may look free).
void remove_dead_shared_memory();

}  // namespace ckpt
