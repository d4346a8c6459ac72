#include "file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "lease-watch.h"
#include "page-cache.h"
#include "sha256.h"

namespace ckpt {
namespace {

constexpr uint64_t kChunkBytes = 1ull << 20;
constexpr uint64_t kHashChunkBytes = 4ull << 20;
// Less than that is faster through the page cache, whose read-ahead brings small neighbours too.
constexpr uint64_t kDirectBytesMin = 256ull << 10;

bool same_time(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

// ctime also changes when the file is unlinked or replaced by rename, which leaves the bytes as
// they are: then the number of links differs too.
bool same_content(const struct stat& a, const struct stat& b) {
  if (a.st_size != b.st_size || a.st_ino != b.st_ino || !same_time(a.st_mtim, b.st_mtim))
    return false;
  return same_time(a.st_ctim, b.st_ctim) || a.st_nlink != b.st_nlink;
}

bool is_filesystem(int fd, std::initializer_list<long> magics) {
  struct statfs info;
  if (fstatfs(fd, &info) != 0) return false;
  return std::find(magics.begin(), magics.end(), static_cast<long>(info.f_type)) != magics.end();
}

const char* lease_refusal(int error_number) {
  switch (error_number) {
    case EAGAIN:
      return "it is open or mapped for writing";
    case EACCES:
    case EPERM:
      return "it belongs to another user";
    case EINVAL:
    case ENOLCK:
      return "its file system has no leases";
    default:
      return "fcntl";
  }
}

}  // namespace

bool ReadGate::enter() {
  std::lock_guard lock(mutex_);
  if (closed_) return false;
  inside_++;
  return true;
}

bool ReadGate::leave() {
  std::lock_guard lock(mutex_);
  return --inside_ == 0 && closed_;
}

void ReadGate::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
}

bool ReadGate::empty() {
  std::lock_guard lock(mutex_);
  return inside_ == 0;
}

std::shared_ptr<File> File::open(const char* path) {
  // O_NONBLOCK: opening a FIFO must not wait for its other end.
  int fd = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 && errno == EWOULDBLOCK)
    fd = ::open(path, O_RDONLY | O_CLOEXEC);  // another program's write lease
  if (fd < 0) fail_errno(CKPT_ERR_IO, errno, "open %s", path);
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    fail(CKPT_ERR_IO, "open %s: not a regular file", path);
  }
  return std::make_shared<File>(fd, path, info);
}

File::File(int fd, std::string path, const struct stat& info)
    : fd_(fd), path_(std::move(path)), opened_(info) {}

File::~File() {
  if (lease_taken_) LeaseWatch::instance().remove(this);
  ::close(fd_);
}

bool File::on_tmpfs() const { return is_filesystem(fd_, {TMPFS_MAGIC, RAMFS_MAGIC}); }

void File::describe(ckpt_file_info& info) {
  struct stat now;
  if (fstat(fd_, &now) != 0) fail_errno(CKPT_ERR_IO, errno, "fstat %s", path_.c_str());
  info = {};
  info.bytes = static_cast<uint64_t>(now.st_size);
  info.inode = now.st_ino;
  info.device = now.st_dev;
  info.ctime_ns = static_cast<int64_t>(now.st_ctim.tv_sec) * 1000000000 + now.st_ctim.tv_nsec;
  info.kind = on_tmpfs() ? CKPT_FILE_TMPFS : CKPT_FILE_DISK;
  info.leased = leased() ? 1 : 0;
}

void File::locate(ckpt_file_location& location) {
  struct statfs system;
  if (fstatfs(fd_, &system) != 0) fail_errno(CKPT_ERR_IO, errno, "fstatfs %s", path_.c_str());
  const auto cached = cached_bytes(fd_, bytes());
  location = {};
  location.filesystem = static_cast<uint64_t>(system.f_type) & UINT32_MAX;
  location.cached_known = cached.has_value() ? 1 : 0;
  if (cached.has_value()) {
    location.bytes_looked = cached->looked;
    location.bytes_cached = cached->cached;
  }
}

uint64_t File::read_some(uint64_t offset, uint64_t bytes, void* to) {
  uint64_t done = 0;
  while (done < bytes) {
    const ssize_t count = pread(fd_, static_cast<uint8_t*>(to) + done, bytes - done,
                                static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      fail_errno(CKPT_ERR_IO, errno, "read %s at %llu", path_.c_str(),
                 static_cast<unsigned long long>(offset + done));
    }
    if (count == 0) break;
    done += static_cast<uint64_t>(count);
  }
  return done;
}

void File::read(uint64_t offset, uint64_t bytes, void* to) {
  const uint64_t done = read_some(offset, bytes, to);
  if (done < bytes) {
    fail(CKPT_ERR_IO, "read %s at %llu: the file ends there", path_.c_str(),
         static_cast<unsigned long long>(offset + done));
  }
}

bool File::open_direct() {
  std::lock_guard lock(mutex_);
  if (direct_ == nullptr) direct_ = DirectFile::open(fd_);
  return direct_ != nullptr;
}

bool File::direct() {
  std::lock_guard lock(mutex_);
  return direct_ != nullptr;
}

void File::read_bulk(uint64_t offset, uint64_t bytes, uint8_t* to, BounceBuffer& bounce) {
  std::shared_ptr<DirectFile> direct;
  if (bytes >= kDirectBytesMin) {
    std::lock_guard lock(mutex_);
    direct = direct_;
  }
  const uint64_t done = direct == nullptr ? 0 : direct->read_some(offset, bytes, to, bounce);
  if (done < bytes) read(offset + done, bytes - done, to + done);
}

void File::sha256(uint64_t offset, uint64_t bytes, uint8_t* digest) {
  std::vector<uint8_t> chunk(std::min(bytes, kHashChunkBytes));
  Sha256 hash;
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t count = std::min<uint64_t>(chunk.size(), bytes - done);
    read(offset + done, count, chunk.data());
    hash.update(chunk.data(), count);
    done += count;
  }
  hash.finish(digest);
}

void File::lease(std::shared_ptr<Signal> signal) {
  std::lock_guard lock(mutex_);
  if (lease_taken_) fail(CKPT_ERR_STATE, "lease %s: it was taken before", path_.c_str());
  // The kernel would keep the lease among this machine's openers only, while the bytes change
  // elsewhere.
  if (is_filesystem(fd_, {FUSE_SUPER_MAGIC}))
    fail(CKPT_ERR_LEASE, "lease %s: a FUSE file system does not keep it", path_.c_str());
  LeaseWatch& watch = LeaseWatch::instance();
  watch.direct_signals(fd_, path_);
  if (fcntl(fd_, F_SETLEASE, F_RDLCK) != 0) {
    const int error_number = errno;
    fail_errno(CKPT_ERR_LEASE, error_number, "lease %s: %s", path_.c_str(),
               lease_refusal(error_number));
  }
  lease_taken_ = true;
  lease_signal_ = std::move(signal);
  // Whatever happened between the open and the lease.
  struct stat now;
  if (fstat(fd_, &now) != 0 || !same_content(opened_, now)) {
    gate_.close();
    fcntl(fd_, F_SETLEASE, F_UNLCK);
    fail_changed("it changed before the lease");
  }
  watch.add(weak_from_this());
}

// The kernel says F_UNLCK as soon as somebody wants to write, and after it took the lease away.
bool File::lease_broken() { return gate_.closed() || fcntl(fd_, F_GETLEASE) != F_RDLCK; }

bool File::has_lease() {
  std::lock_guard lock(mutex_);
  return lease_taken_;
}

bool File::leased() { return has_lease() && !lease_broken(); }

void File::check() {
  const bool taken = has_lease();
  if (taken && lease_broken()) fail_changed("somebody opened it for writing");
  struct stat now;
  if (fstat(fd_, &now) != 0) fail_errno(CKPT_ERR_IO, errno, "fstat %s", path_.c_str());
  // Under a lease nobody can write, so that other times only mean that it was renamed, linked or
  // touched.
  if (taken ? now.st_size != opened_.st_size : !same_content(opened_, now))
    fail_changed("it was written to");
}

void File::require_lease() {
  if (!leased()) fail_changed("its lease is broken");
}

std::unique_ptr<File::Reader> File::enter() {
  auto reader = std::make_unique<Reader>(shared_from_this());
  return reader->inside() && leased() ? std::move(reader) : nullptr;
}

void File::read_leased(uint64_t offset, uint64_t bytes, void* to) {
  LeasedReads reads(shared_from_this());
  reads.read(offset, bytes, to);
  reads.end();
}

void File::LeasedReads::read(uint64_t offset, uint64_t bytes, void* to) {
  for (uint64_t done = 0; done < bytes;) {
    if (bytes_left_ == 0) renew();
    const uint64_t count = std::min(bytes_left_, bytes - done);
    if (file_->read_some(offset + done, count, static_cast<uint8_t*>(to) + done) < count)
      file_->fail_changed("it is shorter");
    bytes_left_ -= count;
    done += count;
  }
}

void File::LeasedReads::renew() {
  end();
  reader_ = file_->enter();
  if (reader_ == nullptr) file_->fail_changed("its lease is broken");
  bytes_left_ = kChunkBytes;
}

void File::LeasedReads::end() {
  if (reader_ == nullptr) return;
  // Broken meanwhile: the kernel takes the lease from a process that was stopped for longer than
  // lease-break-time.
  file_->require_lease();
  reader_ = nullptr;
  bytes_left_ = 0;
}

void File::leave() {
  if (gate_.leave()) LeaseWatch::instance().wake();
}

void File::give_lease_up() {
  fcntl(fd_, F_SETLEASE, F_UNLCK);
  std::shared_ptr<Signal> signal;
  {
    std::lock_guard lock(mutex_);
    signal = std::move(lease_signal_);
    lease_signal_ = nullptr;
  }
  if (signal != nullptr) signal->raise(0);
}

void File::fail_changed(const char* reason) {
  fail(CKPT_ERR_CHANGED, "%s changed after it was registered in place: %s", path_.c_str(), reason);
}

}  // namespace ckpt
