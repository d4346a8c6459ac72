#include "page-cache.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

namespace ckpt {
namespace {

constexpr uint64_t kRangeBytes = 1ull << 20;
constexpr uint64_t kRanges = 64;

// cachestat (Linux 6.5) with its structs, which older headers lack.
#ifdef SYS_cachestat
constexpr long kSysCachestat = SYS_cachestat;
#else
constexpr long kSysCachestat = 451;
#endif

struct CachestatRange {
  uint64_t offset;
  uint64_t bytes;
};

struct Cachestat {
  uint64_t cached;
  uint64_t dirty;
  uint64_t writeback;
  uint64_t evicted;
  uint64_t recently_evicted;
};

struct Range {
  uint64_t offset;  // of a page
  uint64_t bytes;
};

uint64_t page_bytes() {
  static const uint64_t bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

std::vector<Range> spread_ranges(uint64_t file_bytes) {
  if (file_bytes <= kRanges * kRangeBytes) return {{0, file_bytes}};
  std::vector<Range> ranges;
  const uint64_t last = file_bytes - kRangeBytes;
  for (uint64_t i = 0; i < kRanges; i++) {
    // last / (kRanges - 1) first: no product overflows
    const uint64_t offset = i + 1 == kRanges ? last : last / (kRanges - 1) * i;
    ranges.push_back({offset / page_bytes() * page_bytes(), kRangeBytes});
  }
  return ranges;
}

std::optional<uint64_t> ask_cachestat(int fd, const Range& range) {
  CachestatRange asked{range.offset, range.bytes};
  Cachestat found{};
  if (syscall(kSysCachestat, fd, &asked, &found, 0u) != 0) return std::nullopt;
  return found.cached;
}

// mincore calls every page of a file cached for whom it does not want to tell (can_do_mincore).
bool mincore_tells(int fd) {
  struct stat info;
  if (fstat(fd, &info) != 0) return false;
  if (geteuid() == 0 || info.st_uid == geteuid()) return true;
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0;
}

std::optional<uint64_t> ask_mincore(int fd, const Range& range) {
  // Never touched: a file that is cut off meanwhile raises no SIGBUS.
  void* mapping =
      mmap(nullptr, range.bytes, PROT_READ, MAP_SHARED, fd, static_cast<off_t>(range.offset));
  if (mapping == MAP_FAILED) return std::nullopt;
  std::vector<unsigned char> pages((range.bytes + page_bytes() - 1) / page_bytes());
  const bool told = mincore(mapping, range.bytes, pages.data()) == 0;
  munmap(mapping, range.bytes);
  if (!told) return std::nullopt;
  return static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(),
                                             [](unsigned char page) { return (page & 1) != 0; }));
}

// On overlayfs cachestat looks at the overlay's file, which caches nothing: the pages belong to the
// file below, and a mapping is one of that.
bool cachestat_sees_pages(int fd) {
  struct statfs info;
  return fstatfs(fd, &info) == 0 && static_cast<long>(info.f_type) != OVERLAYFS_SUPER_MAGIC;
}

using Ask = std::optional<uint64_t> (*)(int fd, const Range& range);

std::optional<CachedBytes> ask_all(Ask ask, int fd, const std::vector<Range>& ranges) {
  CachedBytes sum{0, 0};
  for (const Range& range : ranges) {
    const auto pages = ask(fd, range);
    if (!pages) return std::nullopt;
    sum.looked += range.bytes;
    // the last page may be part of the file only
    sum.cached += std::min(*pages * page_bytes(), range.bytes);
  }
  return sum;
}

}  // namespace

std::optional<CachedBytes> cached_bytes(int fd, uint64_t file_bytes) {
  if (file_bytes == 0) return CachedBytes{0, 0};
  const std::vector<Range> ranges = spread_ranges(file_bytes);
  if (cachestat_sees_pages(fd)) {
    // refused: an older kernel, or a file of another user
    if (const auto found = ask_all(ask_cachestat, fd, ranges)) return found;
  }
  if (!mincore_tells(fd)) return std::nullopt;
  return ask_all(ask_mincore, fd, ranges);
}

}  // namespace ckpt
