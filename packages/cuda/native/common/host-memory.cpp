#include "host-memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>

#include "error.h"
#include "random.h"
#include "threads.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace ckpt {
namespace {

constexpr uint64_t kPopulateBytes = 2ull << 20;
constexpr char kNamePrefix[] = "/ckpt-";

uint64_t number_in(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : UINT64_MAX;  // "max", or no such file
}

uint64_t stat_field(const std::string& path, const std::string& field) {
  std::ifstream file(path);
  std::string name;
  uint64_t value;
  while (file >> name >> value) {
    if (name == field) return value;
  }
  return 0;
}

// The least that this process' cgroup and its parents (version 2) leave.
uint64_t cgroup_available_bytes() {
  std::ifstream file("/proc/self/cgroup");
  std::string line;
  std::string path = "/";
  while (std::getline(file, line)) {
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  }
  uint64_t least = UINT64_MAX;
  for (int depth = 0; depth < 64; depth++) {
    const std::string folder = "/sys/fs/cgroup" + (path == "/" ? "" : path);
    const uint64_t limit = number_in(folder + "/memory.max");
    if (limit != UINT64_MAX) {
      const uint64_t used = number_in(folder + "/memory.current");
      // Clean pages of files count as used, but give way.
      const uint64_t held =
          used - std::min(used, stat_field(folder + "/memory.stat", "inactive_file"));
      least = std::min(least, limit - std::min(limit, held));
    }
    if (path == "/" || path.empty()) break;
    path = path.substr(0, std::max<size_t>(path.rfind('/'), 0));
    if (path.empty()) path = "/";
  }
  return least;
}

uint64_t page_round(uint64_t bytes) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

// --- names of shared memory ---

struct Names {
  std::mutex mutex;
  std::set<std::string> live;
  pid_t owner = getpid();  // a child after fork() must not remove its parent's names
};

Names& names() {
  static Names& instance = *new Names;
  return instance;
}

__attribute__((destructor)) void remove_names() {
  if (names().owner != getpid()) return;
  std::lock_guard lock(names().mutex);
  for (const std::string& name : names().live) shm_unlink(name.c_str());
}

void remember_name(const std::string& name) {
  // Bun ends with quick_exit, which runs no destructors.
  static const int registered = at_quick_exit(remove_names);
  (void)registered;
  std::lock_guard lock(names().mutex);
  names().live.insert(name);
}

void forget_name(const std::string& name) {
  shm_unlink(name.c_str());
  std::lock_guard lock(names().mutex);
  names().live.erase(name);
}

std::string new_name() {
  static std::atomic<uint32_t> counter{0};
  uint64_t random;
  fill_random(&random, sizeof random);
  return format_text("%s%d-%u-%016llx", kNamePrefix, getpid(), counter++,
                     static_cast<unsigned long long>(random));
}

void* map_shared(int fd, uint64_t bytes, const char* name) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED)
    fail_errno(CKPT_ERR_MEMORY, errno, "mmap %llu bytes of %s",
               static_cast<unsigned long long>(bytes), name);
  madvise(address, bytes, MADV_HUGEPAGE);
  return address;
}

struct FdCloser {
  int fd;
  ~FdCloser() { ::close(fd); }
};

void populate_part(uint8_t* address, uint64_t bytes, bool for_writing) {
  while (madvise(address, bytes, for_writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    // EFAULT stands for the SIGBUS that touching the page would raise.
    if (errno == EFAULT && !for_writing) fail_errno(CKPT_ERR_IO, EIO, "reading a mapped file");
    if (errno != EINVAL) {
      fail_errno(CKPT_ERR_MEMORY, errno == EFAULT ? ENOSPC : errno, "populating %llu bytes",
                 static_cast<unsigned long long>(bytes));
    }
    // A kernel before 5.14. Shared memory was reserved by fallocate (reserve below), so that
    // touching it is safe.
    if (!for_writing) return;
    const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    for (uint64_t at = 0; at < bytes; at += page)
      reinterpret_cast<volatile uint8_t*>(address)[at] = 0;
    return;
  }
}

bool kernel_populates() {
  static const bool yes = [] {
    const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    void* probe = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (probe == MAP_FAILED) return false;
    const bool done = madvise(probe, page, MADV_POPULATE_WRITE) == 0;
    munmap(probe, page);
    return done;
  }();
  return yes;
}

}  // namespace

uint64_t available_memory_bytes() {
  const uint64_t available_kib = [] {
    std::ifstream file("/proc/meminfo");
    std::string name, unit;
    uint64_t value;
    while (file >> name >> value) {
      if (name == "MemAvailable:") return value;
      std::getline(file, unit);
    }
    return UINT64_MAX / 1024;
  }();
  return std::min(available_kib * 1024, cgroup_available_bytes());
}

uint64_t available_shared_bytes() {
  struct statvfs info;
  if (statvfs("/dev/shm", &info) != 0) fail_errno(CKPT_ERR_IO, errno, "statvfs /dev/shm");
  return std::min<uint64_t>(static_cast<uint64_t>(info.f_bavail) * info.f_frsize,
                            available_memory_bytes());
}

void require_memory(const char* what, uint64_t bytes, uint64_t available) {
  if (bytes > available) {
    fail(CKPT_ERR_MEMORY, "%s: %llu bytes asked for, %llu available", what,
         static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(available));
  }
}

void populate(void* address, uint64_t bytes, bool for_writing, uint32_t threads) {
  const uint64_t parts = (bytes + kPopulateBytes - 1) / kPopulateBytes;
  parallel_for(parts, threads, [&](uint64_t part) {
    const uint64_t begin = part * kPopulateBytes;
    populate_part(static_cast<uint8_t*>(address) + begin, std::min(kPopulateBytes, bytes - begin),
                  for_writing);
  });
}

AnonymousMemory::AnonymousMemory(uint64_t bytes) : mapped_bytes_(page_round(bytes)) {
  const uint64_t with_slack = mapped_bytes_ + kHugePageBytes;
  void* mapped = with_slack < bytes ? MAP_FAILED
                                    : mmap(nullptr, with_slack, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED)
    fail_errno(CKPT_ERR_MEMORY, ENOMEM, "mmap %llu bytes", static_cast<unsigned long long>(bytes));
  const uint64_t begin = reinterpret_cast<uint64_t>(mapped);
  const uint64_t aligned = (begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  if (aligned > begin) munmap(mapped, aligned - begin);
  const uint64_t end = aligned + mapped_bytes_;
  if (begin + with_slack > end) munmap(reinterpret_cast<void*>(end), begin + with_slack - end);
  address_ = reinterpret_cast<void*>(aligned);
  madvise(address_, mapped_bytes_, MADV_HUGEPAGE);
  // A child that Bun forks for another program must not copy page tables of many GiB, nor pin
  // anything.
  madvise(address_, mapped_bytes_, MADV_DONTFORK);
}

AnonymousMemory::~AnonymousMemory() { munmap(address_, mapped_bytes_); }

SharedMemory::SharedMemory(std::string name, void* address, uint64_t bytes, int lock_fd)
    : name_(std::move(name)), address_(address), bytes_(bytes), lock_fd_(lock_fd) {}

SharedMemory* SharedMemory::create(uint64_t bytes) {
  const std::string name = new_name();
  remember_name(name);
  int fd = -1;
  try {
    fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) != 0) {
      fail_errno(CKPT_ERR_IO, errno, "shm_open %s", name.c_str());
    }
    if (bytes > INT64_MAX || ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
      fail_errno(CKPT_ERR_MEMORY, bytes > INT64_MAX ? EFBIG : errno, "ftruncate %s", name.c_str());
    }
    if (!kernel_populates()) {
      const int result = posix_fallocate(fd, 0, static_cast<off_t>(bytes));
      if (result != 0) fail_errno(CKPT_ERR_MEMORY, result, "reserving %s", name.c_str());
    }
    return new SharedMemory(name, map_shared(fd, bytes, name.c_str()), bytes, fd);
  } catch (...) {
    if (fd >= 0) ::close(fd);
    forget_name(name);
    throw;
  }
}

SharedMemory* SharedMemory::open(const std::string& name, uint64_t bytes) {
  if (name.rfind(kNamePrefix, 0) != 0 || name.find('/', 1) != std::string::npos ||
      name.size() >= NAME_MAX) {
    fail(CKPT_ERR_INVALID, "not a handle of this library");
  }
  const int fd = shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0);
  if (fd < 0) fail_errno(CKPT_ERR_IO, errno, "shm_open %s", name.c_str());
  FdCloser closer{fd};
  struct stat info;
  if (fstat(fd, &info) != 0) fail_errno(CKPT_ERR_IO, errno, "fstat %s", name.c_str());
  if (static_cast<uint64_t>(info.st_size) < bytes) {
    fail(CKPT_ERR_INVALID, "%s has %lld bytes, not %llu", name.c_str(),
         static_cast<long long>(info.st_size), static_cast<unsigned long long>(bytes));
  }
  return new SharedMemory(name, map_shared(fd, bytes, name.c_str()), bytes, -1);
}

SharedMemory::~SharedMemory() {
  munmap(address_, bytes_);
  if (lock_fd_ < 0) return;
  forget_name(name_);
  ::close(lock_fd_);
}

void remove_dead_shared_memory() {
  DIR* folder = opendir("/dev/shm");
  if (folder == nullptr) return;
  while (const dirent* entry = readdir(folder)) {
    int pid = 0;
    int length = 0;
    if (sscanf(entry->d_name, "ckpt-%d-%*u-%*16[0-9a-f]%n", &pid, &length) < 1 || pid <= 0)
      continue;
    if (length == 0 || entry->d_name[length] != '\0') continue;
    if (kill(pid, 0) == 0 || errno != ESRCH) continue;
    const std::string name = std::string("/") + entry->d_name;
    const int fd = shm_open(name.c_str(), O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) continue;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) shm_unlink(name.c_str());
    ::close(fd);
  }
  closedir(folder);
}

}  // namespace ckpt
