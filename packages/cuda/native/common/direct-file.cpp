#include "direct-file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <string>

namespace ckpt {
namespace {

// What nearly every device and file system takes.
constexpr uint64_t kBlockBytesMin = 4096;
constexpr uint64_t kBlockBytesMax = 1ull << 20;

// Offsets, lengths and addresses must be multiples of it; 0: no direct reads.
uint64_t block_bytes_of(int fd) {
#ifdef STATX_DIOALIGN
  struct statx info;
  // Linux 6.1; before that nobody tells
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
      (info.stx_mask & STATX_DIOALIGN) != 0) {
    if (info.stx_dio_offset_align == 0 || info.stx_dio_mem_align == 0) return 0;
    const uint64_t wanted = std::max<uint64_t>(info.stx_dio_offset_align, info.stx_dio_mem_align);
    const uint64_t block = std::max(kBlockBytesMin, wanted);
    return block <= kBlockBytesMax && std::has_single_bit(block) ? block : 0;
  }
#else
  (void)fd;
#endif
  return kBlockBytesMin;
}

}  // namespace

uint8_t* BounceBuffer::of(uint64_t bytes) {
  if (bytes <= size_) return bytes_.get();
  bytes_.reset();
  size_ = 0;
  void* made = nullptr;
  if (posix_memalign(&made, kBlockBytesMax, bytes) != 0) throw std::bad_alloc();
  bytes_.reset(static_cast<uint8_t*>(made));
  size_ = bytes;
  return bytes_.get();
}

std::unique_ptr<DirectFile> DirectFile::open(int fd) {
  const uint64_t block_bytes = block_bytes_of(fd);
  if (block_bytes == 0) return nullptr;
  // The file itself, whatever is at its path by now. O_NONBLOCK: another program's write lease.
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const int direct_fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
  if (direct_fd < 0) return nullptr;
  std::unique_ptr<DirectFile> file(new DirectFile(direct_fd, block_bytes));
  // Some take the flag and refuse the read.
  BounceBuffer bounce;
  file->read_blocks(0, block_bytes, bounce.of(block_bytes));
  return file->refused_ ? nullptr : std::move(file);
}

DirectFile::~DirectFile() { ::close(fd_); }

uint64_t DirectFile::read_blocks(uint64_t begin, uint64_t bytes, uint8_t* to) {
  uint64_t done = 0;
  while (done < bytes) {
    const ssize_t count = pread(fd_, to + done, bytes - done, static_cast<off_t>(begin + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) refused_ = true;
    if (count <= 0) break;
    done += static_cast<uint64_t>(count);
    // within a block: the file ends there, and a read from there on would be refused
    if (done % block_bytes_ != 0) break;
  }
  return done;
}

uint64_t DirectFile::read_some(uint64_t offset, uint64_t bytes, uint8_t* to, BounceBuffer& bounce) {
  if (refused_ || bytes == 0) return 0;
  const uint64_t begin = offset & ~(block_bytes_ - 1);
  const uint64_t end = (offset + bytes + block_bytes_ - 1) & ~(block_bytes_ - 1);
  uint8_t* blocks = bounce.of(end - begin);
  const uint64_t skipped = offset - begin;
  const uint64_t done = read_blocks(begin, end - begin, blocks);
  if (done <= skipped) return 0;
  const uint64_t count = std::min(bytes, done - skipped);
  std::memcpy(to, blocks + skipped, count);
  return count;
}

}  // namespace ckpt
